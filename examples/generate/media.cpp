// SPDX-License-Identifier: Apache-2.0
// GIF through giflib, PNG through libpng.
#include <generate/media.hpp>
#include <generate/palette.hpp>
#include <gif_lib.h>
#include <png.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <utility>

namespace media {

using namespace latpar;

namespace {

// The last entry of a GIF's palette says "as in the frame before".
constexpr std::size_t colors_at_most = 255;
constexpr std::uint8_t unchanged = 255;

void check_video(const rgb_video& video) {
    const auto& [frames, height, width, data] = video;
    detail::require(frames > 0 && height > 0 && width > 0, "a clip of ", frames, " frames of ",
                    height, "x", width, " pixels is empty");
    detail::require(static_cast<index_t>(data.size()) == frames * height * width * 3, "a clip of ",
                    frames, " frames of ", height, "x", width, " pixels takes ",
                    frames * height * width * 3, " bytes, not ", data.size());
}

/// Thresholds of an 8x8 ordered dither, centred on zero, within half a unit.
float threshold(index_t y, index_t x) {
    index_t order = 0;
    for (int bit = 0; bit < 3; ++bit) {
        order = order * 4 + (((x ^ y) >> bit) & 1) * 2 + ((y >> bit) & 1);
    }
    return (static_cast<float>(order) + 0.5f) / 64.0f - 0.5f;
}

/// Palette indices of one frame.
void quantize(const rgb_video& video, index_t frame, palette& colors, std::span<GifPixelType> out) {
    // Twice the error on average reaches the neighbouring colours, and no further; where the
    // palette holds every colour nothing is dithered.
    const float reach = std::min(2.0f * colors.error(), 24.0f);
    const auto pixels = video.frame(frame);
    std::size_t i = 0;
    for (index_t y = 0; y < video.height; ++y) {
        for (index_t x = 0; x < video.width; ++x, ++i) {
            const float shift = reach * threshold(y, x);
            out[i] = colors.nearest({float(pixels[3 * i]) + shift, float(pixels[3 * i + 1]) + shift,
                                     float(pixels[3 * i + 2]) + shift});
        }
    }
}

/// Writes a whole file. The libraries could, too, but libpng removes what it cannot write, be it a
/// device.
void write_file(const std::filesystem::path& path, std::span<const std::uint8_t> bytes) {
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
    out.close();
    detail::require<io_error>(out.good(), path,
                              " cannot be written; is the disk full, or the path wrong?");
}

/// A GIF in the making, in memory until it is whole.
class gif_file {
public:
    explicit gif_file(const std::filesystem::path& path) : path_(path) {
        int code = 0;
        file_ = EGifOpen(this, &append, &code);
        if (!file_) fail(GifErrorString(code));
    }
    gif_file(const gif_file&) = delete;
    gif_file& operator=(const gif_file&) = delete;
    ~gif_file() {
        if (file_) EGifCloseFile(file_, nullptr);
    }

    [[nodiscard]] GifFileType* get() const { return file_; }
    void check(int status) const {
        if (status != GIF_OK) fail(GifErrorString(file_->Error));
    }
    void close() {
        int code = 0;
        if (EGifCloseFile(std::exchange(file_, nullptr), &code) != GIF_OK)
            fail(GifErrorString(code));
        write_file(path_, bytes_);
    }

private:
    static int append(GifFileType* file, const GifByteType* data, int count) {
        std::vector<std::uint8_t>& bytes = static_cast<gif_file*>(file->UserData)->bytes_;
        bytes.insert(bytes.end(), data, data + count);
        return count;
    }
    [[noreturn]] void fail(const char* reason) const {
        throw io_error(detail::concat("GIF ", path_,
                                      " cannot be written: ", reason ? reason : "unknown error"));
    }

    std::filesystem::path path_;
    std::vector<std::uint8_t> bytes_;
    GifFileType* file_ = nullptr;
};

}  // namespace

void write_gif(const std::filesystem::path& path, const rgb_video& video, double fps) {
    check_video(video);
    detail::require(std::max(video.height, video.width) <= 65535, "a GIF has at most 65535x65535 ",
                    "pixels, not ", video.height, "x", video.width);
    detail::require(fps > 0 && fps <= 50, "a GIF plays at more than 0 and at most 50 frames a ",
                    "second, not at ", fps);

    palette colors(video.data, colors_at_most);
    std::array<GifColorType, 256> entries{};
    for (std::size_t i = 0; i < colors.colors().size(); ++i) {
        const rgb& color = colors.colors()[i];
        entries[i] = {static_cast<GifByteType>(color[0]), static_cast<GifByteType>(color[1]),
                      static_cast<GifByteType>(color[2])};
    }
    const std::unique_ptr<ColorMapObject, decltype(&GifFreeMapObject)> map(
        GifMakeMapObject(static_cast<int>(entries.size()), entries.data()), &GifFreeMapObject);
    detail::require<io_error>(map != nullptr, "no memory for the palette of ", path);

    const auto width = static_cast<int>(video.width);
    const auto height = static_cast<int>(video.height);
    gif_file file(path);
    EGifSetGifVersion(file.get(), true);
    file.check(EGifPutScreenDesc(file.get(), width, height, 8, 0, map.get()));
    file.check(EGifPutExtensionLeader(file.get(), APPLICATION_EXT_FUNC_CODE));
    file.check(EGifPutExtensionBlock(file.get(), 11, "NETSCAPE2.0"));
    constexpr std::array<GifByteType, 3> forever{1, 0, 0};
    file.check(EGifPutExtensionBlock(file.get(), forever.size(), forever.data()));
    file.check(EGifPutExtensionTrailer(file.get()));

    std::vector<GifPixelType> shown;
    std::vector<GifPixelType> next(static_cast<std::size_t>(width) *
                                   static_cast<std::size_t>(height));
    std::vector<GifPixelType> line(static_cast<std::size_t>(width));
    const auto time = [&](index_t frame) { return std::lround(double(frame) * 100.0 / fps); };
    for (index_t frame = 0; frame < video.frames; ++frame) {
        quantize(video, frame, colors, next);
        GraphicsControlBlock control{};
        control.DisposalMode = DISPOSE_DO_NOT;
        control.DelayTime = static_cast<int>(time(frame + 1) - time(frame));
        control.TransparentColor = frame == 0 ? NO_TRANSPARENT_COLOR : int{unchanged};
        std::array<GifByteType, 4> bytes{};
        EGifGCBToExtension(&control, bytes.data());
        file.check(
            EGifPutExtension(file.get(), GRAPHICS_EXT_FUNC_CODE, bytes.size(), bytes.data()));
        file.check(EGifPutImageDesc(file.get(), 0, 0, width, height, false, nullptr));
        for (std::size_t begin = 0; begin < next.size(); begin += line.size()) {
            for (std::size_t x = 0; x < line.size(); ++x) {
                const bool same = frame > 0 && next[begin + x] == shown[begin + x];
                line[x] = same ? unchanged : next[begin + x];
            }
            file.check(EGifPutLine(file.get(), line.data(), width));
        }
        shown = next;
    }
    file.close();
}

void write_contact_sheet(const std::filesystem::path& path, std::span<const rgb_video> rows,
                         index_t frames_per_row) {
    constexpr index_t gap = 2;
    detail::require(!rows.empty(), "a contact sheet without clips was asked for");
    detail::require(frames_per_row > 0, "a contact sheet with ", frames_per_row,
                    " frames in a row was asked for; use 1 or more");
    const rgb_video& first = rows.front();
    for (const rgb_video& video : rows) {
        check_video(video);
        detail::require(video.height == first.height && video.width == first.width,
                        "clips of one contact sheet have one size, not ", first.height, "x",
                        first.width, " and ", video.height, "x", video.width);
    }
    const index_t columns = frames_per_row;
    const index_t width = columns * (first.width + gap) - gap;
    const index_t height = static_cast<index_t>(rows.size()) * (first.height + gap) - gap;
    std::vector<std::uint8_t> sheet(static_cast<std::size_t>(width * height * 3), 255);
    for (std::size_t row = 0; row < rows.size(); ++row) {
        const rgb_video& video = rows[row];
        const index_t shown = std::min(columns, video.frames);
        for (index_t column = 0; column < shown; ++column) {
            const index_t index = shown == 1 ? 0 : column * (video.frames - 1) / (shown - 1);
            const auto pixels = video.frame(index);
            const index_t top = static_cast<index_t>(row) * (video.height + gap);
            const index_t left = column * (video.width + gap);
            for (index_t y = 0; y < video.height; ++y) {
                std::memcpy(sheet.data() + ((top + y) * width + left) * 3,
                            pixels.data() + y * video.width * 3,
                            static_cast<std::size_t>(video.width * 3));
            }
        }
    }

    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(width);
    image.height = static_cast<png_uint_32>(height);
    image.format = PNG_FORMAT_RGB;
    png_alloc_size_t size = 0;
    std::vector<std::uint8_t> bytes;
    bool encoded =
        png_image_write_to_memory(&image, nullptr, &size, 0, sheet.data(), 0, nullptr) != 0;
    if (encoded) {
        bytes.resize(size);
        encoded = png_image_write_to_memory(&image, bytes.data(), &size, 0, sheet.data(), 0,
                                            nullptr) != 0;
    }
    detail::require<io_error>(encoded, "PNG ", path, " cannot be encoded: ", image.message);
    write_file(path, bytes);
}

}  // namespace media

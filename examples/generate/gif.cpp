// SPDX-License-Identifier: Apache-2.0
// GIF through giflib.
#include <generate/gif.hpp>
#include <generate/palette.hpp>
#include <gif_lib.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <optional>
#include <utility>

namespace media {

using namespace latpar;

namespace {

// The last entry of a GIF's palette says "as in the frame before".
constexpr std::size_t colors_at_most = 255;
constexpr std::uint8_t unchanged = 255;

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

/// Whether a palette made for other pixels does for these: about as well as for its own.
bool fits(palette& colors, const rgb_video& clip) {
    return colors.error_of(clip.data) <= 1.5f * colors.error() + 2.0f;
}

using color_map = std::unique_ptr<ColorMapObject, decltype(&GifFreeMapObject)>;

color_map map_of(const palette& colors) {
    std::array<GifColorType, 256> entries{};
    for (std::size_t i = 0; i < colors.colors().size(); ++i) {
        const rgb& color = colors.colors()[i];
        entries[i] = {static_cast<GifByteType>(color[0]), static_cast<GifByteType>(color[1]),
                      static_cast<GifByteType>(color[2])};
    }
    color_map out(GifMakeMapObject(static_cast<int>(entries.size()), entries.data()),
                  &GifFreeMapObject);
    detail::require<io_error>(out != nullptr, "no memory for a palette");
    return out;
}

}  // namespace

/// The file, from its first clip on.
class gif_writer::file {
public:
    file(const std::filesystem::path& path, const rgb_video& first)
        : path_(path),
          out_(path, std::ios::binary),
          height_(first.height),
          width_(first.width),
          colors_(first.data, colors_at_most) {
        int code = 0;
        gif_ = EGifOpen(this, &append, &code);
        if (!gif_) fail(GifErrorString(code));
        try {
            begin();
        } catch (...) {
            EGifCloseFile(gif_, nullptr);
            throw;
        }
    }
    file(const file&) = delete;
    file& operator=(const file&) = delete;
    ~file() {
        if (gif_) EGifCloseFile(gif_, nullptr);
    }

    void add(const rgb_video& clip, double fps) {
        detail::require(clip.height == height_ && clip.width == width_,
                        "the clips of one GIF have one size, not ", height_, "x", width_, " and ",
                        clip.height, "x", clip.width);
        if (frames_ > 0 && !fits(colors_, clip)) {
            colors_ = palette(clip.data, colors_at_most);
            own_map_ = map_of(colors_);
            shown_.clear();
        }
        for (index_t frame = 0; frame < clip.frames; ++frame) add_frame(clip, frame, fps);
        flush();
    }
    void close() {
        int code = 0;
        if (EGifCloseFile(std::exchange(gif_, nullptr), &code) != GIF_OK) {
            fail(GifErrorString(code));
        }
        flush();
        out_.close();
        require_good();
    }

private:
    static int append(GifFileType* gif, const GifByteType* data, int count) {
        std::vector<char>& bytes = static_cast<file*>(gif->UserData)->bytes_;
        bytes.insert(bytes.end(), data, data + count);
        return count;
    }
    [[noreturn]] void fail(const char* reason) const {
        throw io_error(detail::concat("GIF ", path_,
                                      " cannot be written: ", reason ? reason : "unknown error"));
    }
    void check(int status) const {
        if (status != GIF_OK) fail(GifErrorString(gif_->Error));
    }
    void require_good() const {
        detail::require<io_error>(out_.good(), path_,
                                  " cannot be written; is the disk full, or the path wrong?");
    }
    void flush() {
        out_.write(bytes_.data(), std::ssize(bytes_));
        bytes_.clear();
        out_.flush();
        require_good();
    }

    void begin() {
        const color_map map = map_of(colors_);
        EGifSetGifVersion(gif_, true);
        check(EGifPutScreenDesc(gif_, static_cast<int>(width_), static_cast<int>(height_), 8, 0,
                                map.get()));
        check(EGifPutExtensionLeader(gif_, APPLICATION_EXT_FUNC_CODE));
        check(EGifPutExtensionBlock(gif_, 11, "NETSCAPE2.0"));
        constexpr std::array<GifByteType, 3> forever{1, 0, 0};
        check(EGifPutExtensionBlock(gif_, forever.size(), forever.data()));
        check(EGifPutExtensionTrailer(gif_));
    }

    void add_frame(const rgb_video& clip, index_t frame, double fps) {
        const auto time = [&](index_t f) { return std::lround(double(f) * 100.0 / fps); };
        const auto width = static_cast<int>(width_);
        const bool whole = shown_.empty();
        next_.resize(static_cast<std::size_t>(height_ * width_));
        line_.resize(static_cast<std::size_t>(width_));
        quantize(clip, frame, colors_, next_);
        GraphicsControlBlock control{};
        control.DisposalMode = DISPOSE_DO_NOT;
        control.DelayTime = static_cast<int>(time(frames_ + 1) - time(frames_));
        control.TransparentColor = whole ? NO_TRANSPARENT_COLOR : int{unchanged};
        std::array<GifByteType, 4> bytes{};
        EGifGCBToExtension(&control, bytes.data());
        check(EGifPutExtension(gif_, GRAPHICS_EXT_FUNC_CODE, bytes.size(), bytes.data()));
        check(
            EGifPutImageDesc(gif_, 0, 0, width, static_cast<int>(height_), false, own_map_.get()));
        for (std::size_t begin = 0; begin < next_.size(); begin += line_.size()) {
            for (std::size_t x = 0; x < line_.size(); ++x) {
                const bool same = !whole && next_[begin + x] == shown_[begin + x];
                line_[x] = same ? unchanged : next_[begin + x];
            }
            check(EGifPutLine(gif_, line_.data(), width));
        }
        shown_ = next_;
        ++frames_;
    }

    std::filesystem::path path_;
    std::ofstream out_;
    index_t height_;
    index_t width_;
    palette colors_;
    color_map own_map_{nullptr, &GifFreeMapObject};  // once the first palette no longer serves
    GifFileType* gif_ = nullptr;
    std::vector<char> bytes_;  // those that are not written yet
    std::vector<GifPixelType> shown_, next_, line_;
    index_t frames_ = 0;
};

gif_writer::gif_writer(std::filesystem::path path, double fps) : path_(std::move(path)), fps_(fps) {
    detail::require(fps > 0 && fps <= 50, "a GIF plays at more than 0 and at most 50 frames a ",
                    "second, not at ", fps);
}
gif_writer::gif_writer(gif_writer&&) noexcept = default;
gif_writer::~gif_writer() = default;

void gif_writer::add(const rgb_video& clip) {
    check_video(clip);
    detail::require(std::max(clip.height, clip.width) <= 65535, "a GIF has at most 65535x65535 ",
                    "pixels, not ", clip.height, "x", clip.width);
    if (!file_) file_ = std::make_unique<file>(path_, clip);
    file_->add(clip, fps_);
}

void gif_writer::close() {
    if (file_) file_->close();
    file_.reset();
}

}  // namespace media

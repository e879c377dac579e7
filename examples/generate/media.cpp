// SPDX-License-Identifier: Apache-2.0
// Clips, and PNG through libpng.
#include <generate/gif.hpp>
#include <generate/media.hpp>
#include <png.h>

#include <algorithm>
#include <cstring>
#include <fstream>

namespace media {

using namespace latpar;

void check_video(const rgb_video& video) {
    const auto& [frames, height, width, data] = video;
    detail::require(frames > 0 && height > 0 && width > 0, "a clip of ", frames, " frames of ",
                    height, "x", width, " pixels is empty");
    detail::require(static_cast<index_t>(data.size()) == frames * height * width * 3, "a clip of ",
                    frames, " frames of ", height, "x", width, " pixels takes ",
                    frames * height * width * 3, " bytes, not ", data.size());
}

namespace {

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

}  // namespace

void write_gif(const std::filesystem::path& path, const rgb_video& video, double fps) {
    gif_writer file(path, fps);
    file.add(video);
    file.close();
}

frame_picker::frame_picker(index_t frames, index_t picks) {
    detail::require(frames > 0 && picks > 0, picks, " of ", frames,
                    " frames were to be picked; use 1 or more of each");
    const index_t shown = std::min(frames, picks);
    for (index_t k = 0; k < shown; ++k) {
        wanted_.push_back(shown == 1 ? 0 : k * (frames - 1) / (shown - 1));
    }
}

void frame_picker::add(const rgb_video& clip) {
    check_video(clip);
    if (picked_.frames == 0) picked_ = {0, clip.height, clip.width, {}};
    while (picked_.frames < std::ssize(wanted_)) {
        const index_t index = wanted_[static_cast<std::size_t>(picked_.frames)] - seen_;
        if (index >= clip.frames) break;
        const auto pixels = clip.frame(index);
        picked_.data.insert(picked_.data.end(), pixels.begin(), pixels.end());
        ++picked_.frames;
    }
    seen_ += clip.frames;
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

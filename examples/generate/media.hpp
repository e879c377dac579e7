// SPDX-License-Identifier: Apache-2.0
// Writing what was generated: a clip as an animated GIF, several clips as one PNG.
#pragma once

#include <latpar/core/dtype.hpp>

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace media {

/// A clip of 8-bit RGB frames.
struct rgb_video {
    latpar::index_t frames = 0;
    latpar::index_t height = 0;
    latpar::index_t width = 0;
    std::vector<std::uint8_t> data{};  ///< [frames, height, width, 3], row-major.

    [[nodiscard]] std::span<const std::uint8_t> frame(latpar::index_t index) const {
        const auto bytes = static_cast<std::size_t>(height * width * 3);
        return std::span(data).subspan(static_cast<std::size_t>(index) * bytes, bytes);
    }
};

/// Errors: usage_error for a clip that is empty, or whose data are not as many as its frames take.
void check_video(const rgb_video& video);

/// Writes a whole clip as an endlessly looping GIF with one palette; see gif_writer.
void write_gif(const std::filesystem::path& path, const rgb_video& video, double fps);

/// Writes a PNG with one row for each clip, of `frames_per_row` frames evenly spaced from the first
/// to the last; a shorter clip leaves the rest of its row empty.
///
/// Errors: usage_error without clips, for clips of different sizes or empty ones, or without
/// frames in a row; io_error if the file cannot be written.
void write_contact_sheet(const std::filesystem::path& path, std::span<const rgb_video> rows,
                         latpar::index_t frames_per_row);

/// Frames evenly spaced from the first to the last of a clip that comes in parts.
class frame_picker {
public:
    /// Errors: usage_error unless both are positive.
    frame_picker(latpar::index_t frames, latpar::index_t picks);

    /// The next part.
    void add(const rgb_video& clip);
    /// What was picked so far.
    [[nodiscard]] const rgb_video& picked() const noexcept { return picked_; }

private:
    std::vector<latpar::index_t> wanted_;  // numbers of the frames to pick
    latpar::index_t seen_ = 0;
    rgb_video picked_;
};

}  // namespace media

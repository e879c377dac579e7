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

/// Writes an endlessly looping GIF.
///
/// One palette serves the whole clip, so that nothing flickers; where 255 colours do not do,
/// the rest is hidden by ordered dithering. Pixels that stay as they are cost nothing.
/// Errors: usage_error for an empty clip, a side over 65535 or fps outside (0, 50]; io_error if
/// the file cannot be written.
void write_gif(const std::filesystem::path& path, const rgb_video& video, double fps);

/// Writes a PNG with one row for each clip, of `frames_per_row` frames evenly spaced from the first
/// to the last; a shorter clip leaves the rest of its row empty.
///
/// Errors: usage_error without clips, for clips of different sizes or empty ones, or without
/// frames in a row; io_error if the file cannot be written.
void write_contact_sheet(const std::filesystem::path& path, std::span<const rgb_video> rows,
                         latpar::index_t frames_per_row);

}  // namespace media

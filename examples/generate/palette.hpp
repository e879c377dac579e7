// SPDX-License-Identifier: Apache-2.0
// The few colours that stand for all colours of a clip.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace media {

using rgb = std::array<float, 3>;

/// A palette for given pixels, and the nearest of its colours for any other.
///
/// Source: variance-based cuts of the colour histogram (after X. Wu, Graphics Gems II), then a few
/// rounds of Lloyd's algorithm.
class palette {
public:
    /// At most `size` colours for `pixels` [n, 3]; n and `size` are positive, `size` at most 256.
    palette(std::span<const std::uint8_t> pixels, std::size_t size);

    [[nodiscard]] std::span<const rgb> colors() const noexcept { return colors_; }
    /// Root mean square distance, per channel, of the pixels from their nearest colours.
    [[nodiscard]] float error() const noexcept { return error_; }
    /// The same of other pixels, [n, 3] with a positive n.
    [[nodiscard]] float error_of(std::span<const std::uint8_t> pixels);
    /// Index of the nearest colour, up to the histogram's resolution.
    [[nodiscard]] std::uint8_t nearest(const rgb& color);

private:
    std::vector<rgb> colors_;
    // For each bin of the histogram: the colour that stands for it, and which of the palette is
    // nearest to that, or -1 while nobody has asked.
    std::vector<rgb> bins_;
    std::vector<std::int16_t> nearest_;
    float error_ = 0;
};

}  // namespace media

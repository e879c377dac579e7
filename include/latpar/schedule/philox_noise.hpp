// SPDX-License-Identifier: Apache-2.0
// Noise that is the same whoever draws it.
#pragma once

#include <latpar/schedule/noise_source.hpp>

#include <string>

namespace latpar::inline v0 {

/// Standard normal noise as a function of seed, key and global coordinate.
///
/// Each rank draws its own box and nothing is sent: the partition, the number of ranks, the extents
/// of the global latent and what else was drawn make no difference to any value.
/// `cuda::philox_noise` draws the same bits on a device.
///
/// The sequence, part of the interface: words = philox4x32({w / 4, h, t, c + 2^16 b}, key'), where
/// key' is the first two words of philox4x32({stream, step}, seed), each 64-bit number as its low
/// and high 32 bits. Words 0 and 1 give the values of w % 4 = 0 (r cos) and 1 (r sin), words 2 and
/// 3 those of 2 and 3: r = sqrt(-2 ln u), u the upper 31 bits of the first word and a half, over
/// 2^31; the angle is the second word over 2^32 of a turn. Float32 arithmetic in a fixed order.
/// Source: Box and Muller (1958); Salmon et al. (SC 2011).
class philox_noise {
public:
    explicit philox_noise(std::uint64_t seed) noexcept : seed_(seed) {}

    [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }
    /// See noise_source.
    [[nodiscard]] std::string fingerprint() const;

    /// Writes the noise of the box `where` of the global latent to `out` [B, C, where.extent].
    ///
    /// Stream: done on return.
    /// Memory: float32 on the host, any strides.
    /// Errors: usage_error for another type or memory, extents that are not the box's, a coordinate
    /// below 0 or beyond 2^32 (w: 2^34), and more than 65536 samples or channels.
    void fill(latent_view out, const box& where, noise_key key, stream_ref stream = {}) const;

    friend bool operator==(const philox_noise&, const philox_noise&) = default;

private:
    std::uint64_t seed_;
};

static_assert(noise_source<philox_noise>);

}  // namespace latpar::inline v0

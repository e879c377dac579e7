// SPDX-License-Identifier: Apache-2.0
// Noise that is the same whoever draws it, drawn by a device.
#pragma once

#include <latpar/schedule/coordinated_noise.hpp>

namespace latpar::inline v0::cuda {

/// The noise of `latpar::philox_noise` in CUDA memory, to the bit.
///
/// So ranks with a device and ranks without sample the same video from one seed.
class philox_noise {
public:
    explicit philox_noise(std::uint64_t seed) noexcept : seed_(seed) {}

    [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }
    /// That of `latpar::philox_noise`, since the values are the same.
    [[nodiscard]] std::string fingerprint() const;

    /// Writes the noise of the box `where` of the global latent to `out` [B, C, where.extent], in
    /// one launch up to 2^30 values.
    ///
    /// Stream: ordered on `stream`, whose device must be current in the calling thread; never
    /// blocks, and can be captured in a graph.
    /// Memory: float32 in CUDA memory, any strides; takes none.
    /// Errors: device_error if a launch is refused; usage_error as `latpar::philox_noise::fill`.
    void fill(latent_view out, const box& where, noise_key key, stream_ref stream = {}) const;

    friend bool operator==(const philox_noise&, const philox_noise&) = default;

private:
    std::uint64_t seed_;
};

static_assert(noise_source<philox_noise>);

/// `latpar::coordinated_noise` in CUDA memory, one launch a frame.
using coordinated_noise = basic_coordinated_noise<philox_noise>;

}  // namespace latpar::inline v0::cuda

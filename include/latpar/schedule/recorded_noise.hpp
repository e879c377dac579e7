// SPDX-License-Identifier: Apache-2.0
// Noise that the user brings.
#pragma once

#include <latpar/schedule/noise_source.hpp>

#include <vector>

namespace latpar::inline v0 {

/// A noise source that hands out what was drawn elsewhere: by another framework, or for a test.
///
/// Memory: it borrows; the latents outlive it. Host memory, [B, C, T, H, W] of the global latent,
/// f32, bf16 or f16.
class recorded_noise {
public:
    /// One recorded draw, and the key that asks for it.
    struct entry {
        noise_key key;
        const_latent_view noise;
    };

    /// The same noise for every key: for samplers that draw once, at the start.
    explicit recorded_noise(const_latent_view noise) : entries_{{{}, noise}}, any_key_(true) {}

    /// For each key its own.
    ///
    /// Errors: usage_error if a key comes twice.
    explicit recorded_noise(std::vector<entry> entries);

    /// Writes the box `where` of the latent that was recorded for `key` to `out`.
    ///
    /// Stream: done on return.
    /// Errors: usage_error if nothing was recorded for the key, the box is not within the recorded
    /// latent, or `out` is not of its batch and channels and the box's extents.
    void fill(latent_view out, const box& where, noise_key key, stream_ref stream = {}) const;

private:
    std::vector<entry> entries_;
    bool any_key_ = false;
};

static_assert(noise_source<recorded_noise>);

}  // namespace latpar::inline v0

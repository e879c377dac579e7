// SPDX-License-Identifier: Apache-2.0
// The noise_source concept: noise that depends on where it is, not on who draws it.
#pragma once

#include <latpar/core/view.hpp>

#include <concepts>

namespace latpar::inline v0 {

/// Which noise is drawn.
struct noise_key {
    std::uint64_t stream = 0;  ///< separates uses: 0 is the initial latent, 1 the scheduler's noise
    index_t step = 0;          ///< denoising step, or the block of a longer video

    friend bool operator==(noise_key, noise_key) = default;
};

/// Noise as a function of the key and the global coordinate (b, c, t, h, w), and of nothing else.
///
/// `source.fill(out, where, key, stream)` writes the standard normal noise of the box `where` of
/// the global latent to `out` [B, C, where.extent], float32.
///
/// A source may have `source.fingerprint()`, a text that is the same for sources of the same values
/// and no others: by it ranks find out that they do not draw from one source, on a device too.
/// Where it is missing its first value serves, if the host can read it.
template <class N>
concept noise_source = requires(const N& source, latent_view out, const box& where, noise_key key,
                                stream_ref stream) {
    { source.fill(out, where, key, stream) } -> std::same_as<void>;
};

}  // namespace latpar::inline v0

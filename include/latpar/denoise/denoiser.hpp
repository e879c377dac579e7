// SPDX-License-Identifier: Apache-2.0
// The denoiser concept: the user's model, and every policy that wraps one.
#pragma once

#include <latpar/denoise/step_info.hpp>

namespace latpar::inline v0 {

/// A callable that predicts from a noisy latent.
///
/// `model(z, info, prediction, stream)` reads z [B, C, T, H, W] and writes prediction
/// [B, C', T, H, W], of the same batch and positions; every element is written. A lambda will do.
///
/// Stream: the work is ordered on `stream`; with host memory it has finished on return.
/// Memory: z and prediction are dense and do not overlap; conditions may be strided.
/// Errors: whatever it throws aborts the run on every rank, with its message.
template <class D>
concept denoiser = requires(D& model, const_latent_view z, const step_info& info,
                            latent_view prediction, stream_ref stream) {
    model(z, info, prediction, stream);
};

/// How many samples a denoiser takes in one call: its `max_batch()`, or 1 if it has none.
///
/// Loops that put several steps together heed it. No call has fewer samples than the latent's own
/// batch, whatever it is.
template <denoiser D>
[[nodiscard]] index_t max_batch_of(const D& model) {
    if constexpr (requires { model.max_batch(); }) {
        return model.max_batch();
    } else {
        return 1;
    }
}

}  // namespace latpar::inline v0

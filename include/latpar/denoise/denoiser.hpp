// SPDX-License-Identifier: Apache-2.0
// The denoiser concept: the user's model, and every policy that wraps one.
#pragma once

#include <latpar/denoise/step_info.hpp>

#include <functional>
#include <string_view>

namespace latpar::inline v0 {

/// A callable that predicts from a noisy latent.
///
/// `model(z, info, prediction, stream)` reads z [B, C, T, H, W] and writes prediction
/// [B, C', T, H, W], of the same batch and positions; every element is written. A lambda will do, or
/// `std::ref` of a model that is not to be moved.
///
/// Stream: the work is ordered on `stream`; with host memory it has finished on return.
/// Memory: z and prediction are dense and do not overlap; conditions may be strided.
/// Errors: whatever it throws aborts the run on every rank, with its message.
template <class D>
concept denoiser = requires(D& model, const_latent_view z, const step_info& info,
                            latent_view prediction, stream_ref stream) {
    model(z, info, prediction, stream);
};

namespace detail {

/// The model itself, behind a std::reference_wrapper too: what else a model may have is asked of it.
template <class D>
[[nodiscard]] constexpr D& unwrapped(D& model) noexcept {
    return model;
}
template <class D>
[[nodiscard]] constexpr D& unwrapped(std::reference_wrapper<D>& model) noexcept {
    return model.get();
}
template <class D>
[[nodiscard]] constexpr D& unwrapped(const std::reference_wrapper<D>& model) noexcept {
    return model.get();
}

/// Ends the waiting of a model's ranks, if it has some.
template <class D>
void abort_model(D& model, std::string_view reason) {
    if constexpr (requires { unwrapped(model).abort(reason); }) unwrapped(model).abort(reason);
}

}  // namespace detail

/// How many samples a denoiser takes in one call: its `max_batch()`, or 1 if it has none.
///
/// Loops that put several steps together heed it. No call has fewer samples than the latent's own
/// batch, whatever it is.
template <denoiser D>
[[nodiscard]] index_t max_batch_of(const D& model) {
    if constexpr (requires { detail::unwrapped(model).max_batch(); }) {
        return detail::unwrapped(model).max_batch();
    } else {
        return 1;
    }
}

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// A lambda that returns its prediction instead of writing it is no denoiser.
// refused: denoiser
// refused: max_batch_of
#include <latpar/denoise/denoiser.hpp>

using namespace latpar;

#if defined(LATPAR_ACCEPTED)
constexpr auto model = [](const_latent_view, const step_info&, latent_view, stream_ref) {};
#else
constexpr auto model = [](const_latent_view z, const step_info&, stream_ref) { return z; };
#endif

index_t batch() {
    return max_batch_of(model);
}

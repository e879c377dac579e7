// SPDX-License-Identifier: Apache-2.0
// A lambda that takes the latent as mutable is no denoiser.
// refused: denoiser
// refused: max_batch_of
#include <latpar/denoise/denoiser.hpp>

using namespace latpar;

#if defined(LATPAR_ACCEPTED)
using input = const_latent_view;
#else
using input = latent_view;
#endif

constexpr auto model = [](input, const step_info&, latent_view, stream_ref) {};

index_t batch() {
    return max_batch_of(model);
}

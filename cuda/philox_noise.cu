// SPDX-License-Identifier: Apache-2.0
// Philox noise in CUDA memory: launches of what detail/noise.hpp plans.
#include "detail/launch.hpp"
#include "detail/noise.hpp"

#include <latpar/cuda/philox_noise.hpp>

#include <schedule/philox_noise.hpp>

namespace latpar::inline v0::cuda {
namespace {

__global__ void __launch_bounds__(detail::block_threads)
    noise_kernel(const __grid_constant__ detail::noise_task task) {
    detail::noise_share(task, blockIdx.x * detail::block_threads + threadIdx.x);
}

}  // namespace

void philox_noise::fill(latent_view out, const box& where, noise_key key, stream_ref stream) const {
    schedule::detail::check_philox_noise(out, where, memory_space::cuda);
    detail::run_noise(out, where, schedule::detail::philox_noise_key(seed_, key),
                      [&](const detail::noise_task& task) {
                          detail::launch(
                              noise_kernel,
                              detail::blocks_for(task.shape.items, detail::block_threads), stream,
                              "philox_noise", task);
                      });
}

std::string philox_noise::fingerprint() const {
    return schedule::detail::philox_noise_fingerprint(seed_);
}

}  // namespace latpar::inline v0::cuda

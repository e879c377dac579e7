// SPDX-License-Identifier: Apache-2.0
// Counting NaNs and infinities: launches of what detail/count.hpp plans.
#include "detail/count.hpp"
#include "detail/launch.hpp"

#include <latpar/cuda/count_non_finite.hpp>

#include <kernel/check.hpp>

namespace latpar::inline v0::cuda {
namespace {

__global__ void __launch_bounds__(detail::block_threads)
    count_kernel(const __grid_constant__ detail::count_task task, std::uint64_t* counter) {
    const std::uint32_t found = __reduce_add_sync(
        0xffffffffu, detail::count_share(task, blockIdx.x * detail::count_tile + threadIdx.x));
    if (found > 0 && threadIdx.x % 32 == 0) {
        atomicAdd(reinterpret_cast<unsigned long long*>(counter), found);
    }
}

}  // namespace

void count_non_finite(const const_latent_view& values, std::uint64_t* counter, stream_ref stream) {
    kernel::detail::check_count(values, memory_space::cuda);
    latpar::detail::require(
        counter != nullptr && reinterpret_cast<std::uintptr_t>(counter) % sizeof(*counter) == 0,
        "a counter of 64 bits is needed, at an address that is a multiple of 8");
    detail::run_count(values, [&](const detail::count_task& task) {
        detail::launch(count_kernel, detail::blocks_for(task.shape.items, detail::count_tile),
                       stream, "count_non_finite", task, counter);
    });
}

}  // namespace latpar::inline v0::cuda

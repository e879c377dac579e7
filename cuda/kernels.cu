// SPDX-License-Identifier: Apache-2.0
// The kernels for CUDA memory: launches of what detail/ plans.
#include "detail/check.hpp"
#include "detail/combination.hpp"
#include "detail/copy.hpp"
#include "detail/merge.hpp"
#include "detail/stitch.hpp"

#include <latpar/cuda/kernels.hpp>

#include <kernel/check.hpp>

namespace latpar::inline v0::cuda {
namespace {

using namespace detail;

// What every supported device takes as parameters of a kernel; beyond 4 KiB a launch costs more.
static_assert(sizeof(copy_batch<128>) <= 32764 && sizeof(large_stitch) <= 32764);
static_assert(sizeof(copy_batch<16>) <= 4096 && sizeof(small_stitch) <= 4096 &&
              sizeof(combination_task) <= 4096);

template <int Capacity>
__global__ void __launch_bounds__(block_threads)
    copy_kernel(const __grid_constant__ copy_batch<Capacity> batch) {
    copy_batch_share(batch, blockIdx.x, threadIdx.x);
}

__global__ void __launch_bounds__(block_threads)
    round_kernel(const __grid_constant__ copy_task task) {
    round_share(task, blockIdx.x * copy_tile + threadIdx.x);
}

template <int Rows>
__global__ void __launch_bounds__(block_threads)
    combination_kernel(const __grid_constant__ combination_task task) {
    combination_share<Rows>(task,
                            blockIdx.x * combination_items(Rows) * block_threads + threadIdx.x);
}

template <bool CutsRows, class Task>
__global__ void __launch_bounds__(block_threads) stitch_kernel(const __grid_constant__ Task task) {
    // Parameters are slow to read where the threads of a warp read at different places.
    __shared__ float weights[Task::max_weights];
    for (std::uint32_t i = threadIdx.x; i < task.weight_count; i += block_threads) {
        weights[i] = task.weights[i];
    }
    __syncthreads();
    const std::uint32_t tile = blockIdx.x * task.tiles_per_block;
    for (std::uint32_t i = 0; i < task.tiles_per_block; ++i) {
        stitch_share<CutsRows>(task, weights, (tile + i) * stitch_tile + threadIdx.x);
    }
}

__global__ void __launch_bounds__(block_threads)
    merge_kernel(const __grid_constant__ merge_task task) {
    const std::uint32_t first = blockIdx.x * merge_tile + threadIdx.x;
    merge_state state;
    merge_read(task, first, state);
    __syncwarp();
    merge_write(task, first, state);
}

template <class Task>
void launch(void (*kernel)(Task), std::uint32_t blocks, const Task& task, stream_ref stream,
            const char* what) {
    void* arguments[] = {const_cast<Task*>(&task)};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(block_threads),
                           arguments, 0, native(stream)),
          "launching ", what);
}

std::uint32_t blocks_for(std::uint32_t items, std::uint32_t per_block) {
    return items / per_block + (items % per_block != 0);
}

auto copy_launch(stream_ref stream, const char* what) {
    return [stream, what]<int Capacity>(const copy_batch<Capacity>& batch) {
        launch(copy_kernel<Capacity>, batch.tiles, batch, stream, what);
    };
}

}  // namespace

void kernels::copy(const_latent_view source, latent_view target, stream_ref stream) const {
    kernel::detail::check_copy(source, target, space());
    if (kernel::detail::is_same_memory(source, target)) return;
    const kernel::copy_pair pair{source, target};
    run_copies({&pair, 1}, copy_launch(stream, "copy"));
}

void kernels::copy_all(std::span<const kernel::copy_pair> copies, stream_ref stream) const {
    for (const kernel::copy_pair& c : copies) {
        kernel::detail::check_copy(c.source, c.target, space());
    }
    run_copies(copies, copy_launch(stream, "copy_all"));
}

void kernels::round(latent_view values, dtype type, stream_ref stream) const {
    kernel::detail::check_round(values, type, space());
    run_round(values, type, [&](const copy_task& task) {
        launch(round_kernel, blocks_for(task.shape.items, copy_tile), task, stream, "round");
    });
}

void kernels::stitch(latent_view output, axis along, std::span<const kernel::stitch_part> parts,
                     stream_ref stream) const {
    kernel::detail::check_stitch(output, along, parts, space());
    run_stitch(output, 2 + index_of(along), parts, [&]<class Task>(const Task& task) {
        const std::uint32_t blocks =
            blocks_for(task.shape.items, stitch_tile * task.tiles_per_block);
        launch(task.cut == 0 ? stitch_kernel<true, Task> : stitch_kernel<false, Task>, blocks, task,
               stream, "stitch");
    });
}

void kernels::linear_combination(std::span<const const_latent_view> inputs,
                                 std::span<const float> coefficients,
                                 std::span<const latent_view> outputs, stream_ref stream) const {
    kernel::detail::check_linear_combination(inputs, coefficients, outputs, space());
    run_combination(inputs, coefficients, outputs, [&](const combination_task& task) {
        visit_rows(task.rows, [&]<int Rows>() {
            launch(combination_kernel<Rows>,
                   blocks_for(task.shape.items, combination_items(Rows) * block_threads), task,
                   stream, "linear_combination");
        });
    });
}

void kernels::merge_attention(latent_view output, latent_view lse, const_latent_view part,
                              const_latent_view part_lse, stream_ref stream) const {
    kernel::detail::check_merge(output, lse, part, part_lse, space());
    run_merge(output, lse, part, part_lse, [&](const merge_task& task) {
        launch(merge_kernel, blocks_for(task.shape.items, merge_tile), task, stream,
               "merge_attention");
    });
}

}  // namespace latpar::inline v0::cuda

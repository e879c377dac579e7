// SPDX-License-Identifier: Apache-2.0
// The kernels for CUDA memory: launches of what detail/ plans.
#include "detail/combination.hpp"
#include "detail/copy.hpp"
#include "detail/launch.hpp"
#include "detail/merge.hpp"
#include "detail/stitch.hpp"

#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>

#include <kernel/check.hpp>

namespace latpar::inline v0::cuda {
namespace {

using namespace detail;

// What every supported device takes as parameters of a kernel.
static_assert(sizeof(copy_batch<128>) <= 32764 && sizeof(large_stitch) <= 32764);
// Weights are staged in fours.
static_assert(small_stitch::max_weights % 4 == 0 && large_stitch::max_weights % 4 == 0);

template <int Capacity, bool FetchesParts>
__global__ void __launch_bounds__(block_threads)
    copy_kernel(const __grid_constant__ copy_batch<Capacity> batch) {
    copy_batch_share<FetchesParts>(batch, blockIdx.x, threadIdx.x);
}

__global__ void __launch_bounds__(block_threads)
    round_kernel(const __grid_constant__ copy_task task) {
    round_share(task, blockIdx.x * copy_tile(task) + threadIdx.x);
}

template <int Rows>
__global__ void __launch_bounds__(block_threads)
    combination_kernel(const __grid_constant__ combination_task task) {
    combination_share<Rows>(task,
                            blockIdx.x * combination_items(Rows) * block_threads + threadIdx.x);
}

template <int Rows>
__global__ void __launch_bounds__(block_threads)
    remote_combination_kernel(const __grid_constant__ remote_combination remote) {
    __shared__ float values[kernel::max_operands * kernel::max_operands];
    fetch_coefficients(remote.task, remote.coefficients, threadIdx.x, values);
    __syncthreads();
    combination_share<Rows>(remote.task, table_of(remote.task, values),
                            blockIdx.x * combination_items(Rows) * block_threads + threadIdx.x);
}

/// Blocks that a multiprocessor is to hold: what keeps enough loads in flight.
constexpr int stitch_blocks(int rows, bool cuts_rows) {
    if (rows == 0 || (rows == 1 && !cuts_rows)) return 4;
    return rows <= 2 ? 3 : 1;
}

template <int Rows, bool CutsRows, class Task>
__global__ void __launch_bounds__(block_threads, stitch_blocks(Rows, CutsRows))
    stitch_kernel(const __grid_constant__ Task task) {
    if constexpr (CutsRows) {
        // Parameters are slow to read where the threads of a warp read at different places.
        __shared__ float4 weights[Task::max_weights / 4];
        const auto* const given = reinterpret_cast<const float4*>(task.weights);
        for (std::uint32_t i = threadIdx.x; i * 4 < task.weight_count; i += block_threads) {
            weights[i] = given[i];
        }
        __syncthreads();
        stitch_block_share<Rows, CutsRows>(task, reinterpret_cast<const float*>(weights),
                                           blockIdx.x, threadIdx.x);
    } else {
        stitch_block_share<Rows, CutsRows>(task, task.weights, blockIdx.x, threadIdx.x);
    }
}

template <int Group>
__global__ void __launch_bounds__(block_threads, 4)
    merge_kernel(const __grid_constant__ merge_task task) {
    __shared__ merge_weights weights;
    merge_state state;
    merge_read<Group>(task, blockIdx.x, 0, threadIdx.x, state);
    merge_weigh(task, blockIdx.x, threadIdx.x, weights);
    __syncthreads();
    merge_write<Group>(task, weights, state);
    for (std::uint32_t tile = merge_tile; tile < merge_block_items(task); tile += merge_tile) {
        merge_read<Group>(task, blockIdx.x, tile, threadIdx.x, state);
        merge_write<Group>(task, weights, state);
    }
}

/// Whether memory is of the current device, or of another process.
bool is_own(const std::byte* at) {
    return device_of(at) == current_device();
}

auto copy_launch(stream_ref stream, const char* what) {
    return [stream, what]<int Capacity>(const copy_batch<Capacity>& batch) {
        visit_fetching(batch, [&]<bool FetchesParts>() {
            launch(copy_kernel<Capacity, FetchesParts>, batch.blocks(), stream, what, batch);
        });
    };
}

void launch_stitch(const stitch_job& job, stream_ref stream, const char* what) {
    run_stitch(job, [&]<class Task>(const Task& task) {
        const std::uint32_t blocks = blocks_for(task.shape.threads, block_threads * task.turns);
        visit_stitch_rows<Task>(task.combines ? task.rows : 0, [&]<int Rows>() {
            launch(task.shape.cuts_rows ? stitch_kernel<Rows, true, Task>
                                        : stitch_kernel<Rows, false, Task>,
                   blocks, stream, what, task);
        });
    });
}

}  // namespace

void kernels::copy(const_latent_view source, latent_view target, stream_ref stream) const {
    kernel::detail::check_copy(source, target, space());
    if (kernel::detail::is_same_memory(source, target)) return;
    run_copy({source, target}, is_own, copy_launch(stream, "copy"));
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
        launch(round_kernel, blocks_for(task.shape.items, copy_tile(task)), stream, "round", task);
    });
}

void kernels::stitch(latent_view output, axis along, std::span<const kernel::stitch_part> parts,
                     stream_ref stream) const {
    kernel::detail::check_stitch(output, along, parts, space());
    launch_stitch({.outputs = {&output, 1}, .cut = 2 + index_of(along), .parts = parts}, stream,
                  "stitch");
}

void kernels::linear_combination(std::span<const const_latent_view> inputs,
                                 std::span<const float> coefficients,
                                 std::span<const latent_view> outputs, stream_ref stream) const {
    kernel::detail::check_linear_combination(inputs, coefficients, outputs, space());
    run_combination(inputs, coefficients, outputs, [&](const combination_task& task) {
        visit_rows(task.rows, [&]<int Rows>() {
            launch(combination_kernel<Rows>,
                   blocks_for(task.shape.items, combination_items(Rows) * block_threads), stream,
                   "linear_combination", task);
        });
    });
}

void kernels::device_linear_combination(std::span<const const_latent_view> inputs,
                                        const device_coefficients& coefficients,
                                        std::span<const latent_view> outputs,
                                        stream_ref stream) const {
    kernel::detail::check_remote_combination(inputs, coefficients.count, outputs, space());
    latpar::detail::require(coefficients.values != nullptr || coefficients.count == 0,
                            "coefficients in device memory were to be read at a null pointer");
    run_remote_combination(inputs, coefficients.values, outputs, [&](const auto& remote) {
        visit_rows(remote.task.rows, [&]<int Rows>() {
            launch(remote_combination_kernel<Rows>,
                   blocks_for(remote.task.shape.items, combination_items(Rows) * block_threads),
                   stream, "device_linear_combination", remote);
        });
    });
}

void kernels::stitch_combination(const kernel::stitched_input& stitched,
                                 std::span<const const_latent_view> inputs,
                                 std::span<const float> coefficients,
                                 std::span<const latent_view> outputs, stream_ref stream) const {
    kernel::detail::check_stitch_combination(stitched, inputs, coefficients, outputs, space());
    if (!kernel::detail::is_read(stitched.index, inputs.size(), coefficients)) {
        linear_combination(inputs, coefficients, outputs, stream);
        return;
    }
    launch_stitch({outputs, 2 + index_of(stitched.along), stitched.parts, inputs, coefficients,
                   stitched.index, stitched.type},
                  stream, "stitch_combination");
}

void kernels::merge_attention(latent_view output, latent_view lse, const_latent_view part,
                              const_latent_view part_lse, stream_ref stream) const {
    kernel::detail::check_merge(output, lse, part, part_lse, space());
    run_merge(output, lse, part, part_lse, [&](const merge_task& task) {
        launch(task.group == 8 ? merge_kernel<8> : merge_kernel<4>,
               blocks_for(task.heads, task.heads_per_block), stream, "merge_attention", task);
    });
}

}  // namespace latpar::inline v0::cuda

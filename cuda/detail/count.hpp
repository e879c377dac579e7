// SPDX-License-Identifier: Apache-2.0
// count_non_finite: what a thread does, and the task that it is given.
#pragma once

#include "loop_shape.hpp"

namespace latpar::inline v0::cuda::detail {

/// An item is 16 bytes of neighbours in a row.
struct count_task {
    loop_shape shape;
    operand values;
    dtype type = dtype::f32;
    std::uint8_t width = 0;  ///< elements of one access
};

/// Items of a thread.
inline constexpr std::uint32_t count_items = 4;
inline constexpr std::uint32_t count_tile = count_items * block_threads;

/// The task for a view that is checked and no larger than `max_positions`.
[[nodiscard]] count_task plan_count(const const_latent_view& values);

/// Calls launch(task) for each block of the latent.
template <class Launch>
void run_count(const const_latent_view& values, Launch&& launch, index_t limit = max_positions) {
    for_each_block(values.extents, limit, [&](const auto& origin, const auto& extents) {
        launch(plan_count(block_of(values, origin, extents)));
    });
}

/// How many of `Size` bytes are NaN or infinite: those whose exponent is all ones, as `mask` says.
template <int Size>
LATPAR_DEVICE std::uint32_t count_of(const count_task& task, std::uint32_t first,
                                     std::uint32_t mask) {
    constexpr int count = 16 / Size;
    group values[count_items];
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < count_items; ++u) {
        const std::uint32_t item = first + u * block_threads;
        // What is not read is zero, and that is finite.
        int end = 0;
        const std::byte* from = task.values.data;
        if (item < task.shape.items) {
            const item_place at = locate(task.shape, item);
            const std::uint32_t left = task.shape.row_elements - at.in_row * count;
            end = left < count ? static_cast<int>(left) : count;
            from = task.values.row(at, task.shape.outer_axes) +
                   static_cast<std::int64_t>(at.in_row) * count * task.values.step;
        }
        load_group<Size, count>(from, task.values.step, task.width, 0, end, values[u]);
    }
    std::uint32_t out = 0;
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < count_items; ++u) {
        LATPAR_UNROLL
        for (int e = 0; e < count; ++e) out += (bits_of<Size>(values[u], e) & mask) == mask;
    }
    return out;
}

/// What one thread finds.
LATPAR_DEVICE std::uint32_t count_share(const count_task& task, std::uint32_t first) {
    if (task.type == dtype::f32) return count_of<4>(task, first, 0x7f800000u);
    return count_of<2>(task, first, task.type == dtype::bf16 ? 0x7f80u : 0x7c00u);
}

}  // namespace latpar::inline v0::cuda::detail

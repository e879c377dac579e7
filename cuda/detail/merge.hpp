// SPDX-License-Identifier: Apache-2.0
// merge_attention: what a thread does, and the task that it is given.
#pragma once

#include "loop_shape.hpp"

#include <cmath>
#include <limits>

namespace latpar::inline v0::cuda::detail {

/// A head of a token is the work of neighbouring lanes of one warp: all read the logs, then one
/// writes theirs. An item is one lane of one head.
struct merge_task {
    loop_shape shape;  ///< the row are the lanes of a head
    std::uint32_t head_dim = 0;
    std::uint32_t lanes = 1;
    operand output;
    operand part;
    operand lse;
    operand part_lse;
    dtype output_type = dtype::f32;
    dtype part_type = dtype::f32;
    std::uint8_t output_width = 0;
    std::uint8_t part_width = 0;
};

/// The task for views that are checked, of at most `max_positions`.
[[nodiscard]] merge_task plan_merge(const latent_view& output, const latent_view& lse,
                                    const const_latent_view& part,
                                    const const_latent_view& part_lse);

/// Calls launch(task) for each block of the heads.
template <class Launch>
void run_merge(const latent_view& output, const latent_view& lse, const const_latent_view& part,
               const const_latent_view& part_lse, Launch&& launch, index_t limit = max_positions) {
    const index_t head_dim = output.extents[4];
    const index_t heads = std::max<index_t>(limit / std::max<index_t>(head_dim, 1), 1);
    for_each_block(lse.extents, heads, [&](const auto& origin, const auto& extents) {
        auto wide = extents;
        wide[4] = head_dim;
        launch(plan_merge(block_of(output, origin, wide), block_of(lse, origin, extents),
                          block_of(part, origin, wide), block_of(part_lse, origin, extents)));
    });
}

/// How two partial results weigh.
struct merge_share_weights {
    float first = 0;
    float second = 0;
    float lse = 0;
};

/// As kernel::reference has it.
LATPAR_DEVICE merge_share_weights weigh(float first, float second) {
    const float most = first > second ? first : second;
    if (most < std::numeric_limits<float>::lowest()) return {0, 0, most};
    const float a = expf(first - most);
    const float b = expf(second - most);
    const float sum = a + b;
    return {a / sum, b / sum, most + logf(sum)};
}

inline constexpr std::uint32_t merge_items = 2;
inline constexpr std::uint32_t merge_tile = merge_items * block_threads;

/// What a lane has read before any lane writes.
struct merge_state {
    float first[merge_items];
    float second[merge_items];
    group output[merge_items];
    group part[merge_items];
};

LATPAR_DEVICE int merge_count(const merge_task& task, std::uint32_t at_group) {
    const std::uint32_t begin = at_group * 4;
    if (begin >= task.head_dim) return 0;
    return task.head_dim - begin < 4 ? static_cast<int>(task.head_dim - begin) : 4;
}

LATPAR_DEVICE void merge_load(const dtype type, const operand& from, int width,
                              const item_place& at, int axes, std::uint32_t at_group, int count,
                              group& values) {
    load_four(type, from.row(at, axes) + static_cast<std::int64_t>(at_group) * 4 * from.step,
              from.step, width, 0, count, values);
}

/// The first half of a thread's share; the lanes of a warp meet before the second.
LATPAR_DEVICE void merge_read(const merge_task& task, std::uint32_t first, merge_state& state) {
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < merge_items; ++u) {
        const std::uint32_t item = first + u * block_threads;
        if (item >= task.shape.items) continue;
        const item_place at = locate(task.shape, item);
        const int axes = task.shape.outer_axes;
        std::uint32_t bits = 0;
        load<4>(task.lse.row(at, axes), &bits);
        state.first[u] = std::bit_cast<float>(bits);
        load<4>(task.part_lse.row(at, axes), &bits);
        state.second[u] = std::bit_cast<float>(bits);
        // Before it is known whether they have a weight, so that nothing waits for the logs.
        const int count = merge_count(task, at.in_row);
        merge_load(task.output_type, task.output, task.output_width, at, axes, at.in_row, count,
                   state.output[u]);
        merge_load(task.part_type, task.part, task.part_width, at, axes, at.in_row, count,
                   state.part[u]);
    }
}

LATPAR_DEVICE void merge_write(const merge_task& task, std::uint32_t first, merge_state& state) {
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < merge_items; ++u) {
        const std::uint32_t item = first + u * block_threads;
        if (item >= task.shape.items) continue;
        const item_place at = locate(task.shape, item);
        const int axes = task.shape.outer_axes;
        const merge_share_weights weights = weigh(state.first[u], state.second[u]);
        for (std::uint32_t at_group = at.in_row; at_group * 4 < task.head_dim;
             at_group += task.lanes) {
            const int count = merge_count(task, at_group);
            if (at_group != at.in_row) {
                merge_load(task.output_type, task.output, task.output_width, at, axes, at_group,
                           count, state.output[u]);
                merge_load(task.part_type, task.part, task.part_width, at, axes, at_group, count,
                           state.part[u]);
            }
            float here[4];
            float there[4];
            widen_four(task.output_type, state.output[u], here);
            widen_four(task.part_type, state.part[u], there);
            float sums[4];
            LATPAR_UNROLL
            for (int e = 0; e < 4; ++e) {
                // What no key has written may hold anything; minus zero adds nothing to the bit.
                float sum = weights.first != 0 || weights.second != 0 ? -0.0f : 0.0f;
                if (weights.first != 0) sum += weights.first * here[e];
                if (weights.second != 0) sum += weights.second * there[e];
                sums[e] = sum;
            }
            store_four(task.output_type,
                       task.output.row(at, axes) +
                           static_cast<std::int64_t>(at_group) * 4 * task.output.step,
                       task.output.step, task.output_width, 0, count, sums);
        }
        if (at.in_row == 0) {
            const auto bits = std::bit_cast<std::uint32_t>(weights.lse);
            store<4>(task.lse.row(at, axes), &bits);
        }
    }
}

}  // namespace latpar::inline v0::cuda::detail

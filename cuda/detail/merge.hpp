// SPDX-License-Identifier: Apache-2.0
// merge_attention: what a thread does, and the task that it is given.
#pragma once

#include "loop_shape.hpp"

#include <cmath>
#include <limits>

namespace latpar::inline v0::cuda::detail {

/// A block works on whole heads of tokens: its threads weigh one head each, then all share the
/// elements. An item is a group of neighbours in a head.
struct merge_task {
    loop_shape shape;  ///< the row is a head
    std::uint32_t heads = 0;
    std::uint32_t heads_per_block = 1;
    operand output;
    operand part;
    operand lse;
    operand part_lse;
    dtype output_type = dtype::f32;
    dtype part_type = dtype::f32;
    std::uint8_t group = 4;  ///< elements of an item: 8 if all are of two bytes
    std::uint8_t output_width = 0;
    std::uint8_t part_width = 0;
};

/// Items of a thread, all loaded before anything is stored.
inline constexpr int merge_items = 2;
/// Items that a block has in flight, and the most heads that it works on.
inline constexpr std::uint32_t merge_tile = merge_items * block_threads;

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

/// Weights of the heads of a block, which its threads share.
struct merge_weights {
    float first[merge_tile];
    float second[merge_tile];
};

/// Weighs the thread's heads of a block and writes their logs.
LATPAR_DEVICE void merge_weigh(const merge_task& task, std::uint32_t block, std::uint32_t thread,
                               merge_weights& weights) {
    const std::uint32_t begin = block * task.heads_per_block;
    const int axes = task.shape.outer_axes;
    for (std::uint32_t own = thread; own < task.heads_per_block; own += block_threads) {
        const std::uint32_t head = begin + own;
        if (head >= task.heads) return;
        const item_place at = locate(task.shape, head * task.shape.items_per_row.divisor);
        std::uint32_t bits = 0;
        std::uint32_t part_bits = 0;
        load<4>(task.lse.row(at, axes), &bits);
        load<4>(task.part_lse.row(at, axes), &part_bits);
        const merge_share_weights both =
            weigh(std::bit_cast<float>(bits), std::bit_cast<float>(part_bits));
        weights.first[own] = both.first;
        weights.second[own] = both.second;
        bits = std::bit_cast<std::uint32_t>(both.lse);
        store<4>(task.lse.row(at, axes), &bits);
    }
}

/// The items of a thread: what it has read of them.
struct merge_state {
    std::byte* to[merge_items];
    int end[merge_items];
    std::uint32_t head[merge_items];  ///< among those of the block
    group output[merge_items];
    group part[merge_items];
};

/// Items of a block; several tiles if a head is longer than one.
LATPAR_DEVICE std::uint32_t merge_block_items(const merge_task& task) {
    return task.heads_per_block * task.shape.items_per_row.divisor;
}

/// Reads the thread's items of the tile that begins at item `tile` of a block.
template <int Group>
LATPAR_DEVICE void merge_read(const merge_task& task, std::uint32_t block, std::uint32_t tile,
                              std::uint32_t thread, merge_state& state) {
    const std::uint32_t block_items = merge_block_items(task);
    const int axes = task.shape.outer_axes;
    std::byte* part[merge_items];
    LATPAR_UNROLL
    for (int u = 0; u < merge_items; ++u) {
        const std::uint32_t in_block =
            tile + thread + static_cast<std::uint32_t>(u) * block_threads;
        const std::uint32_t item = block * block_items + in_block;
        state.end[u] = 0;
        state.to[u] = nullptr;
        state.head[u] = 0;
        part[u] = nullptr;
        if (in_block >= block_items || item >= task.shape.items) continue;
        const item_place at = locate(task.shape, item);
        const std::uint32_t left = task.shape.row_elements - at.in_row * Group;
        const std::int64_t in_row = static_cast<std::int64_t>(at.in_row) * Group;
        state.end[u] = left < Group ? static_cast<int>(left) : Group;
        state.head[u] = task.shape.items_per_row.quotient(in_block);
        state.to[u] = task.output.row(at, axes) + in_row * task.output.step;
        part[u] = task.part.row(at, axes) + in_row * task.part.step;
    }
    // Before it is known whether they have a weight, so that nothing waits for the logs.
    load_items<Group>(task.output_type, state.to, task.output.step, task.output_width, 0, state.end,
                      state.output);
    load_items<Group>(task.part_type, part, task.part.step, task.part_width, 0, state.end,
                      state.part);
}

/// Merges and stores what was read, once all heads of the block are weighed.
template <int Group>
LATPAR_DEVICE void merge_write(const merge_task& task, const merge_weights& weights,
                               const merge_state& state) {
    float here[merge_items][Group];
    float there[merge_items][Group];
    widen_items(task.output_type, state.output, here);
    widen_items(task.part_type, state.part, there);
    LATPAR_UNROLL
    for (int u = 0; u < merge_items; ++u) {
        if (state.end[u] == 0) continue;
        const float first = weights.first[state.head[u]];
        const float second = weights.second[state.head[u]];
        LATPAR_UNROLL
        for (int e = 0; e < Group; ++e) {
            // What no key has written may hold anything; minus zero adds nothing to the bit.
            float sum = first != 0 || second != 0 ? -0.0f : 0.0f;
            if (first != 0) sum += first * here[u][e];
            if (second != 0) sum += second * there[u][e];
            here[u][e] = sum;
        }
    }
    store_items(task.output_type, state.to, task.output.step, task.output_width, state.end, here);
}

}  // namespace latpar::inline v0::cuda::detail

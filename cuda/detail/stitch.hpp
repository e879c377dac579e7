// SPDX-License-Identifier: Apache-2.0
// stitch: what a thread does, and the tasks that it is given.
#pragma once

#include "loop_shape.hpp"

#include <latpar/kernel/kernel_set.hpp>

namespace latpar::inline v0::cuda::detail {

/// The positions of an output along its cut, all parts in one pass; an item is four neighbours in
/// a row. Parts and weights travel in the parameters, so that no host memory is read later.
template <int Parts, int Weights>
struct stitch_task {
    static constexpr int max_parts = Parts;
    static constexpr int max_weights = Weights;

    loop_shape shape;
    operand output;
    dtype output_type = dtype::f32;
    std::uint8_t output_width = 0;
    std::uint8_t cut = 0;  ///< the loop's axis along which parts meet; 0 is the row
    std::uint32_t part_count = 0;
    std::uint32_t weight_count = 0;
    std::uint32_t tiles_per_block = 1;
    operand parts[Parts];  ///< from where position 0 of the output would lie
    std::int32_t begin[Parts] = {};
    std::int32_t end[Parts] = {};
    std::int32_t weights_at[Parts] = {};  ///< of position `begin`
    dtype part_types[Parts] = {};
    std::uint8_t part_widths[Parts] = {};
    float weights[Weights] = {};
};

/// What a run of LatentParallel needs, in 4 KiB; and what the parameters of a kernel can hold.
using small_stitch = stitch_task<16, 512>;
using large_stitch = stitch_task<128, 5632>;

/// Positions [begin, end) of an output along its cut.
struct stitch_range {
    index_t begin = 0;
    index_t end = 0;
};

/// The longest range within `whole`, from its begin on, whose parts and weights are no more than
/// these; an empty one if more parts than that meet in its first position.
[[nodiscard]] stitch_range next_stitch_range(std::span<const kernel::stitch_part> parts,
                                             std::size_t cut, stitch_range whole,
                                             std::size_t max_parts, std::size_t max_weights);

/// Errors: usage_error if more than `most` parts meet in one position.
void check_stitch_cover(std::span<const kernel::stitch_part> parts, std::size_t cut,
                        std::size_t most);

/// What lies in one range of a part.
[[nodiscard]] inline stitch_range covered(const kernel::stitch_part& part, std::size_t cut,
                                          stitch_range range) {
    return {std::max(part.begin, range.begin),
            std::min(part.begin + part.prediction.extents[cut], range.end)};
}

inline constexpr std::uint32_t stitch_items = 4;
inline constexpr std::uint32_t stitch_tile = stitch_items * block_threads;

/// The task for the block of `output` that begins at `origin`, along the cut too; its parts and
/// weights fit, and it has no more than `max_positions`.
template <class Task>
void plan_stitch(const latent_view& output, std::size_t cut,
                 std::span<const kernel::stitch_part> parts, std::array<index_t, 5> origin,
                 const std::array<index_t, 5>& extents, Task& out) {
    const stitch_range range{origin[cut], origin[cut] + extents[cut]};
    const latent_view block = block_of(output, origin, extents);
    // Parts have a place of their own along the cut.
    origin[cut] = 0;
    std::array<const kernel::stitch_part*, Task::max_parts> covering{};
    std::array<std::array<index_t, 5>, 1 + Task::max_parts> strides;
    strides[0] = block.strides;
    for (const kernel::stitch_part& part : parts) {
        const stitch_range own = covered(part, cut, range);
        if (own.begin >= own.end) continue;
        covering[out.part_count++] = &part;
        strides[out.part_count] = part.prediction.strides;
    }

    const joined_axes axes = join_axes(extents, std::span(strides).first(1 + out.part_count), cut);
    out.shape = shape_of(axes, 4);
    out.cut = static_cast<std::uint8_t>(axes.kept);
    const index_t size = size_of(block.type);
    out.output = operand_of(block.data, strides[0], size);
    out.output_type = block.type;
    out.output_width = static_cast<std::uint8_t>(access_width(out.output, size, 4));
    for (std::size_t j = 0; j < out.part_count; ++j) {
        const kernel::stitch_part& part = *covering[j];
        const const_latent_view& view = part.prediction;
        const index_t part_size = size_of(view.type);
        const stitch_range own = covered(part, cut, range);
        const index_t skip = view.offset(origin) + (range.begin - part.begin) * view.strides[cut];
        out.parts[j] = operand_of(view.data + skip * part_size, strides[1 + j], part_size);
        out.part_types[j] = view.type;
        out.part_widths[j] = static_cast<std::uint8_t>(access_width(out.parts[j], part_size, 4));
        out.begin[j] = static_cast<std::int32_t>(own.begin - range.begin);
        out.end[j] = static_cast<std::int32_t>(own.end - range.begin);
        out.weights_at[j] = static_cast<std::int32_t>(out.weight_count);
        std::copy_n(part.weights.data() + (own.begin - part.begin), own.end - own.begin,
                    out.weights + out.weight_count);
        out.weight_count += static_cast<std::uint32_t>(own.end - own.begin);
    }
    // A block stages the weights once; where there are many tiles that is to serve several.
    const std::uint32_t tiles = (out.shape.items + stitch_tile - 1) / stitch_tile;
    out.tiles_per_block = std::clamp(tiles / 2048, 1u, 8u);
}

/// Calls launch(task) for each range of each block of the output.
///
/// Errors: usage_error, before the first launch, if too many parts meet in one position.
template <class Launch>
void run_stitch(const latent_view& output, std::size_t cut,
                std::span<const kernel::stitch_part> parts, Launch&& launch,
                index_t limit = max_positions) {
    check_stitch_cover(parts, cut, large_stitch::max_parts);
    // Blocks are cut across the other axes, and the ranges along this one.
    const index_t length = output.extents[cut];
    auto across = output.extents;
    across[cut] = std::min<index_t>(length, 1);
    const index_t across_limit = std::max<index_t>(limit / std::max<index_t>(length, 1), 1);
    for_each_block(across, across_limit, [&](auto origin, auto extents) {
        const auto launch_range = [&](stitch_range range, auto task) {
            origin[cut] = range.begin;
            extents[cut] = range.end - range.begin;
            plan_stitch(output, cut, parts, origin, extents, task);
            launch(std::as_const(task));
        };
        for (stitch_range rest{0, length}; rest.begin < length;) {
            rest.end = std::min(length, rest.begin + limit);
            stitch_range range = next_stitch_range(parts, cut, rest, small_stitch::max_parts,
                                                   small_stitch::max_weights);
            if (range.end == rest.end) {
                launch_range(range, small_stitch{});
            } else {
                range = next_stitch_range(parts, cut, rest, large_stitch::max_parts,
                                          large_stitch::max_weights);
                launch_range(range, large_stitch{});
            }
            rest.begin = range.end;
        }
    });
}

/// The share of one thread of one tile; `CutsRows` where parts meet within a row. `weights` are
/// the task's, wherever they lie.
template <bool CutsRows, class Task>
LATPAR_DEVICE void stitch_share(const Task& task, const float* weights, std::uint32_t first) {
    item_place at[stitch_items];
    int count[stitch_items];
    int position[stitch_items];  // along the cut, of the first neighbour
    // Minus zero plus a first term is that term, to the bit.
    float sums[stitch_items][4];
    std::uint32_t summed[stitch_items];  // a bit for each neighbour that a part covers
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < stitch_items; ++u) {
        const std::uint32_t item = first + u * block_threads;
        count[u] = 0;
        position[u] = 0;
        summed[u] = 0;
        if (item < task.shape.items) {
            at[u] = locate(task.shape, item);
            const std::uint32_t left = task.shape.row_elements - at[u].in_row * 4;
            count[u] = left < 4 ? static_cast<int>(left) : 4;
            if constexpr (CutsRows) {
                position[u] = static_cast<int>(at[u].in_row * 4);
            } else {
                LATPAR_UNROLL
                for (int d = 0; d < 4; ++d) {
                    if (d + 1 == task.cut) position[u] = static_cast<int>(at[u].outer[d]);
                }
            }
        }
        LATPAR_UNROLL
        for (int e = 0; e < 4; ++e) sums[u][e] = -0.0f;
    }

    for (std::uint32_t k = 0; k < task.part_count; ++k) {
        const operand& part = task.parts[k];
        const int part_begin = task.begin[k];
        const int part_end = task.end[k];
        group values[stitch_items];
        int begin[stitch_items];
        int end[stitch_items];
        LATPAR_UNROLL
        for (std::uint32_t u = 0; u < stitch_items; ++u) {
            begin[u] = 0;
            end[u] = count[u];
            if constexpr (CutsRows) {
                const int from = part_begin - position[u];
                const int until = part_end - position[u];
                begin[u] = from > 0 ? from : 0;
                end[u] = until < end[u] ? until : end[u];
            } else if (position[u] < part_begin || position[u] >= part_end) {
                end[u] = 0;
            }
            if (begin[u] >= end[u]) continue;
            const std::byte* from = part.row(at[u], task.shape.outer_axes) +
                                    static_cast<std::int64_t>(at[u].in_row) * 4 * part.step;
            load_four(task.part_types[k], from, part.step, task.part_widths[k], begin[u], end[u],
                      values[u]);
        }
        LATPAR_UNROLL
        for (std::uint32_t u = 0; u < stitch_items; ++u) {
            if (begin[u] >= end[u]) continue;
            float terms[4];
            widen_four(task.part_types[k], values[u], terms);
            const float* const own = weights + task.weights_at[k] + (position[u] - part_begin);
            if constexpr (CutsRows) {
                LATPAR_UNROLL
                for (int e = 0; e < 4; ++e) {
                    if (e < begin[u] || e >= end[u]) continue;
                    sums[u][e] += own[e] * terms[e];
                    summed[u] |= 1u << e;
                }
            } else {
                const float weight = *own;
                LATPAR_UNROLL
                for (int e = 0; e < 4; ++e) sums[u][e] += weight * terms[e];
                summed[u] = 15u;
            }
        }
    }

    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < stitch_items; ++u) {
        LATPAR_UNROLL
        for (int e = 0; e < 4; ++e) {
            if (!((summed[u] >> e) & 1u)) sums[u][e] = 0;
        }
        std::byte* to = task.output.row(at[u], task.shape.outer_axes) +
                        static_cast<std::int64_t>(at[u].in_row) * 4 * task.output.step;
        store_four(task.output_type, to, task.output.step, task.output_width, 0, count[u], sums[u]);
    }
}

}  // namespace latpar::inline v0::cuda::detail

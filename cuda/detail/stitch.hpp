// SPDX-License-Identifier: Apache-2.0
// stitch and stitch_combination: what a thread does, and the tasks that it is given.
#pragma once

#include "combination.hpp"

namespace latpar::inline v0::cuda::detail {

/// The loop of a stitch. A thread works at one place along the cut and in a row, where the parts
/// that cover it are the same, for several of the other positions.
struct stitch_shape {
    divider groups;     ///< of four neighbours in a row
    divider positions;  ///< along the cut, where parts meet above the row; else 1
    divider others[3];  ///< bundles of the first other axis, extents of the next, but for the last
    std::uint32_t row_elements = 0;
    std::uint32_t bundled = 1;  ///< the extent of the axis along which a thread has its items
    std::int32_t other_axes = 0;
    std::uint32_t threads = 0;
    bool cuts_rows = false;
};

/// The positions of an output along its cut, all parts in one pass. Parts and weights travel in the
/// parameters, so that no host memory is read later.
template <int Parts, int Weights, int Inputs, int Outputs>
struct stitch_task : combination_operands<Inputs, Outputs> {
    static constexpr int max_parts = Parts;
    static constexpr int max_weights = Weights;

    stitch_shape shape;
    bool combines = false;       ///< else the one output takes what is stitched
    std::uint32_t stitched = 0;  ///< the columns that are added before it
    dtype stitched_type = dtype::f32;
    std::uint32_t part_count = 0;
    std::uint32_t weight_count = 0;
    std::uint32_t turns = 1;  ///< of a block that cuts rows: it stages the weights once for them
    operand parts[Parts];     ///< from where position 0 of the output would lie
    std::int32_t begin[Parts] = {};
    std::int32_t end[Parts] = {};
    std::int32_t weights_at[Parts] = {};  ///< of position 0 of the output
    dtype part_types[Parts] = {};
    std::uint8_t part_widths[Parts] = {};
    alignas(16) float weights[Weights] = {};
};

/// What a run of LatentParallel needs; and what the parameters of a kernel can hold.
using small_stitch = stitch_task<16, 1024, 7, 4>;
using large_stitch = stitch_task<128, 4864, kernel::max_operands, kernel::max_operands>;

/// What is to be stitched, and the combination that it goes into, if there is one.
struct stitch_job {
    std::span<const latent_view> outputs;
    std::size_t cut = 0;
    std::span<const kernel::stitch_part> parts{};
    std::span<const const_latent_view> inputs{};
    std::span<const float> coefficients{};
    std::size_t stitched = 0;  ///< the input that it stands for
    dtype type = dtype::f32;   ///< what it is rounded to there
};

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

/// Positions beside each other that a thread works on; 0 rows are a stitch and nothing more.
[[nodiscard]] constexpr int stitch_items(int rows) noexcept {
    return rows == 0 ? 4 : rows <= 2 ? 2 : 1;
}

/// Calls f.template operator()<Rows>() with the least number of sums that there is a kernel for.
template <class Task, class F>
void visit_stitch_rows(std::uint32_t rows, F&& f) {
    if (rows == 0) {
        f.template operator()<0>();
    } else if constexpr (Task::max_rows > 4) {
        f.template operator()<Task::max_rows>();
    } else if (rows == 1) {
        f.template operator()<1>();
    } else if (rows == 2) {
        f.template operator()<2>();
    } else {
        f.template operator()<4>();
    }
}

/// The loop over `axes`, the kept one of which is the cut; reorders `strides` to row, cut (where
/// that is not the row) and others. A thread has `items` of the others.
[[nodiscard]] stitch_shape stitch_shape_of(const joined_axes& axes,
                                           std::span<std::array<index_t, 5>> strides,
                                           index_t items);

/// The task for the block that begins at `origin`, along the cut too; its parts and weights fit,
/// and it has no more than `max_positions`.
template <class Task>
void plan_stitch(const stitch_job& job, std::array<index_t, 5> origin,
                 const std::array<index_t, 5>& extents, Task& out) {
    const std::size_t cut = job.cut;
    const stitch_range range{origin[cut], origin[cut] + extents[cut]};
    std::array<latent_view, Task::max_rows> outputs;
    std::array<const_latent_view, kernel::max_operands> inputs;
    column_list columns = columns_read(job.inputs.size(), job.coefficients);
    std::array<std::array<index_t, 5>, Task::max_rows + Task::max_columns + Task::max_parts> room;
    std::size_t operands = 0;
    for (std::size_t r = 0; r < job.outputs.size(); ++r) {
        outputs[r] = block_of(job.outputs[r], origin, extents);
        room[operands++] = outputs[r].strides;
    }
    out.combines = !job.coefficients.empty();
    if (out.combines) {
        // What is in no memory is no column.
        const auto column =
            std::find(columns.of.begin(), columns.of.begin() + columns.count, job.stitched);
        out.stitched = static_cast<std::uint32_t>(column - columns.of.begin());
        std::copy(column + 1, columns.of.end(), column);
        --columns.count;
        for (std::size_t r = 0; r < job.outputs.size(); ++r) {
            const float coefficient = job.coefficients[r * job.inputs.size() + job.stitched];
            out.stitched_coefficients[r] = coefficient;
            if (coefficient != 0) out.summed |= 1u << r;
        }
    }
    for (std::size_t j = 0; j < columns.count; ++j) {
        const std::size_t k = columns.of[j];
        inputs[k] = block_of(job.inputs[k], origin, extents);
        room[operands++] = inputs[k].strides;
    }
    const std::size_t first_part = operands;
    std::array<const kernel::stitch_part*, Task::max_parts> covering{};
    for (const kernel::stitch_part& part : job.parts) {
        const stitch_range own = covered(part, cut, range);
        if (own.begin >= own.end) continue;
        covering[out.part_count++] = &part;
        room[operands++] = part.prediction.strides;
    }
    const auto strides = std::span(room).first(operands);
    const joined_axes axes = join_axes(extents, strides, cut);
    visit_stitch_rows<Task>(
        out.combines ? static_cast<std::uint32_t>(job.outputs.size()) : 0,
        [&]<int Rows>() { out.shape = stitch_shape_of(axes, strides, stitch_items(Rows)); });
    set_operands(out, {inputs.data(), job.inputs.size()}, columns, job.coefficients,
                 {outputs.data(), job.outputs.size()}, strides);
    out.stitched_type = job.type;

    // Parts have a place of their own along the cut.
    origin[cut] = 0;
    for (std::size_t j = 0; j < out.part_count; ++j) {
        const kernel::stitch_part& part = *covering[j];
        const const_latent_view& view = part.prediction;
        const index_t part_size = size_of(view.type);
        const stitch_range own = covered(part, cut, range);
        const index_t skip = view.offset(origin) + (range.begin - part.begin) * view.strides[cut];
        out.parts[j] = operand_of(view.data + skip * part_size, strides[first_part + j], part_size);
        out.part_types[j] = view.type;
        out.part_widths[j] = static_cast<std::uint8_t>(access_width(out.parts[j], part_size, 4));
        out.begin[j] = static_cast<std::int32_t>(own.begin - range.begin);
        out.end[j] = static_cast<std::int32_t>(own.end - range.begin);
        out.weights_at[j] = static_cast<std::int32_t>(out.weight_count) - out.begin[j];
        std::copy_n(part.weights.data() + (own.begin - part.begin), own.end - own.begin,
                    out.weights + out.weight_count);
        out.weight_count += static_cast<std::uint32_t>(own.end - own.begin);
    }
    // Where there are many blocks, weights are to be staged for several of them.
    if (out.shape.cuts_rows) {
        out.turns = std::clamp(out.shape.threads / (block_threads * 1024), 1u, 8u);
    }
}

/// Calls launch(task) for each range of each block of the outputs.
///
/// Errors: usage_error, before the first launch, if too many parts meet in one position.
template <class Launch>
void run_stitch(const stitch_job& job, Launch&& launch, index_t limit = max_positions) {
    check_stitch_cover(job.parts, job.cut, large_stitch::max_parts);
    const std::size_t cut = job.cut;
    const bool few =
        job.outputs.size() <= small_stitch::max_rows &&
        columns_read(job.inputs.size(), job.coefficients).count <= small_stitch::max_columns + 1;
    // Blocks are cut across the other axes, and the ranges along this one.
    auto across = job.outputs[0].extents;
    const index_t length = across[cut];
    across[cut] = std::min<index_t>(length, 1);
    const index_t across_limit = std::max<index_t>(limit / std::max<index_t>(length, 1), 1);
    for_each_block(across, across_limit, [&](auto origin, auto extents) {
        const auto launch_range = [&](stitch_range range, auto task) {
            origin[cut] = range.begin;
            extents[cut] = range.end - range.begin;
            plan_stitch(job, origin, extents, task);
            launch(std::as_const(task));
        };
        for (stitch_range rest{0, length}; rest.begin < length;) {
            rest.end = std::min(length, rest.begin + limit);
            stitch_range range = next_stitch_range(job.parts, cut, rest, small_stitch::max_parts,
                                                   small_stitch::max_weights);
            if (few && range.end == rest.end) {
                launch_range(range, small_stitch{});
            } else {
                range = next_stitch_range(job.parts, cut, rest, large_stitch::max_parts,
                                          large_stitch::max_weights);
                launch_range(range, large_stitch{});
            }
            rest.begin = range.end;
        }
    });
}

/// The items of a thread: neighbours along the first of the other axes.
template <bool CutsRows, int Items>
struct stitch_place {
    /// The axes of an operand, the row and the cut left out.
    static constexpr int first_axis = CutsRows ? 0 : 1;
    static constexpr int max_axes = 4 - first_axis;

    std::uint32_t in_row = 0;
    std::uint32_t position = 0;  ///< along the cut, of the first neighbour
    int count = 0;               ///< of neighbours, up to the end of the row
    std::uint32_t other[4] = {};
    int end[Items];  ///< `count`, or 0 if there is no such item

    LATPAR_DEVICE stitch_place(const stitch_shape& shape, std::uint32_t thread) {
        std::uint32_t rest = shape.groups.quotient(thread);
        in_row = (thread - rest * shape.groups.divisor) * 4;
        const std::uint32_t left = shape.row_elements - in_row;
        count = left < 4 ? static_cast<int>(left) : 4;
        position = in_row;
        if constexpr (!CutsRows) {
            const std::uint32_t next = shape.positions.quotient(rest);
            position = rest - next * shape.positions.divisor;
            rest = next;
        }
        LATPAR_UNROLL
        for (int d = 0; d < max_axes; ++d) {
            if (d < 3 && d + 1 < shape.other_axes) {
                const std::uint32_t next = shape.others[d].quotient(rest);
                other[d] = rest - next * shape.others[d].divisor;
                rest = next;
            } else if (d + 1 == shape.other_axes) {
                other[d] = rest;
            }
        }
        other[0] *= Items;
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) {
            end[u] = other[0] + static_cast<std::uint32_t>(u) < shape.bundled ? count : 0;
        }
    }

    LATPAR_DEVICE void rows_of(const operand& tensor, int axes, std::byte* (&rows)[Items]) const {
        std::byte* first = tensor.data + static_cast<std::int64_t>(in_row) * tensor.step;
        if constexpr (!CutsRows) first += static_cast<std::int64_t>(position) * tensor.outer[0];
        LATPAR_UNROLL
        for (int d = 0; d < max_axes; ++d) {
            if (d < axes)
                first += static_cast<std::int64_t>(other[d]) * tensor.outer[first_axis + d];
        }
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) rows[u] = first + u * tensor.outer[first_axis];
    }
};

/// What is stitched at the items of a thread. `weights` are the task's, wherever they lie.
template <bool CutsRows, int Items, class Task>
LATPAR_DEVICE void stitch_items_at(const Task& task, const float* weights,
                                   const stitch_place<CutsRows, Items>& at,
                                   float (&sums)[Items][4]) {
    // Minus zero plus a first term is that term, to the bit.
    LATPAR_UNROLL
    for (int u = 0; u < Items; ++u) {
        LATPAR_UNROLL
        for (int e = 0; e < 4; ++e) sums[u][e] = -0.0f;
    }
    std::uint32_t summed = 0;  // a bit for each neighbour that a part covers
    for (std::uint32_t k = 0; k < task.part_count; ++k) {
        // The neighbours that the part covers.
        const int from_begin = static_cast<int>(at.position) - task.begin[k];
        const int to_end = task.end[k] - static_cast<int>(at.position);
        int begin = 0;
        int until = at.count;
        if constexpr (CutsRows) {
            begin = from_begin < 0 ? -from_begin : 0;
            until = to_end < until ? to_end : until;
            if (begin >= until) continue;
        } else if (from_begin < 0 || to_end <= 0) {
            continue;
        }
        int end[Items];
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) end[u] = at.end[u] > 0 ? until : 0;
        const operand& part = task.parts[k];
        std::byte* from[Items];
        at.rows_of(part, task.shape.other_axes, from);
        group values[Items];
        load_items<4>(task.part_types[k], from, part.step, task.part_widths[k], begin, end, values);
        const float* const own = weights + (task.weights_at[k] + static_cast<int>(at.position));
        float terms[Items][4];
        widen_items(task.part_types[k], values, terms);
        const auto add = [&](int e) {
            const float weight = own[CutsRows ? e : 0];
            summed |= 1u << e;
            LATPAR_UNROLL
            for (int u = 0; u < Items; ++u) sums[u][e] += weight * terms[u][e];
        };
        if (!CutsRows || until - begin == 4) {
            LATPAR_UNROLL
            for (int e = 0; e < 4; ++e) add(e);
        } else {
            LATPAR_UNROLL
            for (int e = 0; e < 4; ++e) {
                if (e >= begin && e < until) add(e);
            }
        }
    }
    LATPAR_UNROLL
    for (int e = 0; e < 4; ++e) {
        if ((summed >> e) & 1u) continue;
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) sums[u][e] = 0;
    }
}

template <class T, int Items>
LATPAR_DEVICE void round_items(float (&values)[Items][4]) {
    LATPAR_UNROLL
    for (int u = 0; u < Items; ++u) {
        LATPAR_UNROLL
        for (int e = 0; e < 4; ++e) values[u][e] = widen<T>(narrow<T>(values[u][e]));
    }
}

/// The place of a thread among all where parts meet within a row: about half of a warp stands in one
/// row and half in the next, so that fewer parts meet in what it covers. Exactly so where two rows
/// are whole warps; an odd last row stays as it is.
LATPAR_DEVICE std::uint32_t in_two_rows(const stitch_shape& shape, std::uint32_t thread) {
    constexpr std::uint32_t half = 16;
    const std::uint32_t groups = shape.groups.divisor;
    const std::uint32_t first = shape.groups.quotient(thread) / 2 * 2 * groups;
    if (first + 2 * groups > shape.threads) return thread;
    const std::uint32_t chunk = (thread - first) / (2 * half);
    const std::uint32_t left = groups - chunk * half;
    const std::uint32_t width = left < half ? left : half;
    const std::uint32_t lane = thread - first - chunk * 2 * half;
    const std::uint32_t row = lane >= width;
    return first + row * groups + chunk * half + lane - row * width;
}

/// The share of one thread of all; `CutsRows` where parts meet within a row.
template <int Rows, bool CutsRows, class Task>
LATPAR_DEVICE void stitch_share(const Task& task, const float* weights, std::uint32_t thread) {
    if (thread >= task.shape.threads) return;
    if constexpr (CutsRows) thread = in_two_rows(task.shape, thread);
    constexpr int items = stitch_items(Rows);
    const stitch_place<CutsRows, items> at(task.shape, thread);
    const auto rows_of = [&](const operand& tensor, std::byte*(&rows)[items]) {
        at.rows_of(tensor, task.shape.other_axes, rows);
    };
    if constexpr (Rows == 0) {
        float stitched[items][4];
        stitch_items_at(task, weights, at, stitched);
        std::byte* to[items];
        rows_of(task.outputs[0], to);
        store_items(task.output_types[0], to, task.outputs[0].step, task.output_widths[0], at.end,
                    stitched);
    } else {
        combine_items<Rows, items>(task, {&task.coefficients[0][0], task.summed}, rows_of, at.end,
                                   [&](float(&stitched)[items][4]) {
                                       stitch_items_at(task, weights, at, stitched);
                                       if (task.stitched_type == dtype::bf16) {
                                           round_items<bfloat16>(stitched);
                                       } else if (task.stitched_type == dtype::f16) {
                                           round_items<float16>(stitched);
                                       }
                                   });
    }
}

/// The share of one thread of a block.
template <int Rows, bool CutsRows, class Task>
LATPAR_DEVICE void stitch_block_share(const Task& task, const float* weights, std::uint32_t block,
                                      std::uint32_t thread) {
    const std::uint32_t turns = CutsRows ? task.turns : 1;
    const std::uint32_t first = block * turns * block_threads + thread;
    for (std::uint32_t turn = 0; turn < turns; ++turn) {
        stitch_share<Rows, CutsRows>(task, weights, first + turn * block_threads);
    }
}

}  // namespace latpar::inline v0::cuda::detail

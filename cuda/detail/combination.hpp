// SPDX-License-Identifier: Apache-2.0
// linear_combination: what a thread does, and the task that it is given.
#pragma once

#include "loop_shape.hpp"

#include <latpar/kernel/kernel_set.hpp>

namespace latpar::inline v0::cuda::detail {

/// All outputs in one pass over the inputs that are read; an item is four neighbours in a row.
struct combination_task {
    loop_shape shape;
    std::uint32_t rows = 0;
    std::uint32_t columns = 0;
    std::uint32_t summed = 0;  ///< a bit for each output that has a term at all
    operand outputs[kernel::max_operands];
    operand inputs[kernel::max_operands];
    dtype output_types[kernel::max_operands] = {};
    dtype input_types[kernel::max_operands] = {};
    std::uint8_t output_widths[kernel::max_operands] = {};
    std::uint8_t input_widths[kernel::max_operands] = {};
    float coefficients[kernel::max_operands][kernel::max_operands] = {};
};

/// The task for views that are checked and no larger than `max_positions`; there is an output.
[[nodiscard]] combination_task plan_combination(std::span<const const_latent_view> inputs,
                                                std::span<const float> coefficients,
                                                std::span<const latent_view> outputs);

/// Calls launch(task) for each block of the latents.
template <class Launch>
void run_combination(std::span<const const_latent_view> inputs, std::span<const float> coefficients,
                     std::span<const latent_view> outputs, Launch&& launch,
                     index_t limit = max_positions) {
    if (outputs.empty()) return;
    std::array<const_latent_view, kernel::max_operands> in;
    std::array<latent_view, kernel::max_operands> out;
    for_each_block(outputs[0].extents, limit, [&](const auto& origin, const auto& extents) {
        for (std::size_t k = 0; k < inputs.size(); ++k) {
            in[k] = block_of(inputs[k], origin, extents);
        }
        for (std::size_t r = 0; r < outputs.size(); ++r) {
            out[r] = block_of(outputs[r], origin, extents);
        }
        launch(plan_combination({in.data(), inputs.size()}, coefficients,
                                {out.data(), outputs.size()}));
    });
}

/// Items of a thread: as many as keep four loads in flight and leave registers for the sums.
[[nodiscard]] constexpr std::uint32_t combination_items(int rows) noexcept {
    return rows == 1 ? 2 : 1;
}

/// Calls f.template operator()<Rows>() with the least number of sums that holds `rows`.
template <class F>
void visit_rows(std::uint32_t rows, F&& f) {
    if (rows <= 1) {
        f.template operator()<1>();
    } else if (rows <= 2) {
        f.template operator()<2>();
    } else if (rows <= 4) {
        f.template operator()<4>();
    } else {
        f.template operator()<static_cast<int>(kernel::max_operands)>();
    }
}

/// The share of one thread that begins at `first`, for at most `Rows` outputs.
template <int Rows>
LATPAR_DEVICE void combination_share(const combination_task& task, std::uint32_t first) {
    constexpr std::uint32_t items = combination_items(Rows);
    constexpr std::uint32_t ahead = 4 / items;
    item_place at[items];
    int count[items];
    // Minus zero plus a first term is that term, to the bit.
    float sums[items][Rows][4];
    LATPAR_UNROLL
    for (std::uint32_t u = 0; u < items; ++u) {
        const std::uint32_t item = first + u * block_threads;
        count[u] = 0;
        if (item < task.shape.items) {
            at[u] = locate(task.shape, item);
            const std::uint32_t left = task.shape.row_elements - at[u].in_row * 4;
            count[u] = left < 4 ? static_cast<int>(left) : 4;
        }
        LATPAR_UNROLL
        for (int r = 0; r < Rows; ++r) {
            LATPAR_UNROLL
            for (int e = 0; e < 4; ++e) sums[u][r][e] = (task.summed >> r) & 1u ? -0.0f : 0.0f;
        }
    }

    for (std::uint32_t begin = 0; begin < task.columns; begin += ahead) {
        group values[ahead][items];
        LATPAR_UNROLL
        for (std::uint32_t j = 0; j < ahead; ++j) {
            const std::uint32_t k = begin + j;
            if (k >= task.columns) continue;
            const operand& input = task.inputs[k];
            LATPAR_UNROLL
            for (std::uint32_t u = 0; u < items; ++u) {
                const std::byte* from = input.row(at[u], task.shape.outer_axes) +
                                        static_cast<std::int64_t>(at[u].in_row) * 4 * input.step;
                load_four(task.input_types[k], from, input.step, task.input_widths[k], 0, count[u],
                          values[j][u]);
            }
        }
        LATPAR_UNROLL
        for (std::uint32_t j = 0; j < ahead; ++j) {
            const std::uint32_t k = begin + j;
            if (k >= task.columns) continue;
            LATPAR_UNROLL
            for (std::uint32_t u = 0; u < items; ++u) {
                float terms[4];
                widen_four(task.input_types[k], values[j][u], terms);
                LATPAR_UNROLL
                for (std::uint32_t r = 0; r < Rows; ++r) {
                    const float coefficient = task.coefficients[r][k];
                    // What a zero leaves unread may hold anything.
                    if (r >= task.rows || coefficient == 0) continue;
                    LATPAR_UNROLL
                    for (int e = 0; e < 4; ++e) sums[u][r][e] += coefficient * terms[e];
                }
            }
        }
    }

    LATPAR_UNROLL
    for (std::uint32_t r = 0; r < Rows; ++r) {
        if (r >= task.rows) continue;
        const operand& output = task.outputs[r];
        LATPAR_UNROLL
        for (std::uint32_t u = 0; u < items; ++u) {
            std::byte* to = output.row(at[u], task.shape.outer_axes) +
                            static_cast<std::int64_t>(at[u].in_row) * 4 * output.step;
            store_four(task.output_types[r], to, output.step, task.output_widths[r], 0, count[u],
                       sums[u][r]);
        }
    }
}

}  // namespace latpar::inline v0::cuda::detail

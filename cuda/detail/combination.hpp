// SPDX-License-Identifier: Apache-2.0
// linear_combination: what a thread does, and the task that it is given.
#pragma once

#include "loop_shape.hpp"

#include <latpar/kernel/kernel_set.hpp>

namespace latpar::inline v0::cuda::detail {

/// What all outputs are of all columns, the inputs that are read.
template <int Inputs, int Outputs>
struct combination_operands {
    static constexpr int max_columns = Inputs;
    static constexpr int max_rows = Outputs;

    std::uint32_t rows = 0;
    std::uint32_t columns = 0;
    std::uint32_t summed = 0;  ///< a bit for each output that has a term at all
    operand outputs[Outputs];
    operand inputs[Inputs];
    dtype output_types[Outputs] = {};
    dtype input_types[Inputs] = {};
    std::uint8_t output_widths[Outputs] = {};
    std::uint8_t input_widths[Inputs] = {};
    float coefficients[Outputs][Inputs] = {};
    float stitched_coefficients[Outputs] = {};  ///< of what is in no input
};

/// All outputs in one pass over the inputs that are read; an item is four neighbours in a row.
struct combination_task : combination_operands<kernel::max_operands, kernel::max_operands> {
    static constexpr std::uint32_t stitched = ~0u;  ///< nothing is
    loop_shape shape;
};

/// The numbers of the inputs that some output reads.
struct column_list {
    std::size_t count = 0;
    std::array<std::size_t, kernel::max_operands> of{};
};
[[nodiscard]] column_list columns_read(std::size_t inputs, std::span<const float> coefficients);

/// `strides` are joined ones, of the outputs and of each column.
template <class Task>
void set_operands(Task& out, std::span<const const_latent_view> inputs, const column_list& columns,
                  std::span<const float> coefficients, std::span<const latent_view> outputs,
                  std::span<const std::array<index_t, 5>> strides) {
    out.rows = static_cast<std::uint32_t>(outputs.size());
    out.columns = static_cast<std::uint32_t>(columns.count);
    for (std::size_t r = 0; r < outputs.size(); ++r) {
        const index_t size = size_of(outputs[r].type);
        out.outputs[r] = operand_of(outputs[r].data, strides[r], size);
        out.output_types[r] = outputs[r].type;
        out.output_widths[r] = static_cast<std::uint8_t>(access_width(out.outputs[r], size, 4));
    }
    for (std::size_t j = 0; j < columns.count; ++j) {
        const const_latent_view& input = inputs[columns.of[j]];
        const index_t size = size_of(input.type);
        out.inputs[j] = operand_of(input.data, strides[outputs.size() + j], size);
        out.input_types[j] = input.type;
        out.input_widths[j] = static_cast<std::uint8_t>(access_width(out.inputs[j], size, 4));
        for (std::size_t r = 0; r < outputs.size(); ++r) {
            const float coefficient = coefficients[r * inputs.size() + columns.of[j]];
            out.coefficients[r][j] = coefficient;
            if (coefficient != 0) out.summed |= 1u << r;
        }
    }
}

/// The task for views that are checked and no larger than `max_positions`; there is an output.
[[nodiscard]] combination_task plan_combination(std::span<const const_latent_view> inputs,
                                                std::span<const float> coefficients,
                                                std::span<const latent_view> outputs);

/// Calls f(inputs, outputs) for each block of the latents.
template <class F>
void for_each_combination(std::span<const const_latent_view> inputs,
                          std::span<const latent_view> outputs, index_t limit, F&& f) {
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
        f(std::span<const const_latent_view>(in.data(), inputs.size()),
          std::span<const latent_view>(out.data(), outputs.size()));
    });
}

/// Calls launch(task) for each block of the latents.
template <class Launch>
void run_combination(std::span<const const_latent_view> inputs, std::span<const float> coefficients,
                     std::span<const latent_view> outputs, Launch&& launch,
                     index_t limit = max_positions) {
    for_each_combination(inputs, outputs, limit, [&](auto in, auto out) {
        launch(plan_combination(in, coefficients, out));
    });
}

/// Where the coefficients of a task lie: in itself, or where they are read when it runs.
struct coefficient_table {
    const float* values;       ///< [rows, Task::max_columns]
    std::uint32_t summed;      ///< as the task's
    std::uint32_t read = ~0u;  ///< a bit for each column to load; a task's own are
};

/// Coefficients in device memory, and which of them a task's columns have.
struct remote_coefficients {
    const float* values = nullptr;  ///< [rows, inputs]
    std::uint32_t inputs = 0;
    std::uint8_t input_of[kernel::max_operands] = {};  ///< of each column
};
/// A task of every input that has memory; its own coefficients say nothing.
struct remote_combination {
    combination_task task;
    remote_coefficients coefficients;
};
[[nodiscard]] remote_combination plan_remote_combination(std::span<const const_latent_view> inputs,
                                                         const float* coefficients,
                                                         std::span<const latent_view> outputs);

/// One thread's part of bringing them to `values` [rows, max_columns].
LATPAR_DEVICE void fetch_coefficients(const combination_task& task, const remote_coefficients& from,
                                      std::uint32_t thread, float* values) {
    for (std::uint32_t i = thread; i < task.rows * task.columns; i += block_threads) {
        const std::uint32_t r = i / task.columns;
        const std::uint32_t k = i % task.columns;
        values[r * combination_task::max_columns + k] =
            from.values[r * from.inputs + from.input_of[k]];
    }
}
/// The table of coefficients that were brought.
LATPAR_DEVICE coefficient_table table_of(const combination_task& task, const float* values) {
    coefficient_table out{values, 0, 0};
    for (std::uint32_t r = 0; r < task.rows; ++r) {
        for (std::uint32_t k = 0; k < task.columns; ++k) {
            if (values[r * combination_task::max_columns + k] == 0) continue;
            out.summed |= 1u << r;
            out.read |= 1u << k;
        }
    }
    return out;
}

/// Calls launch(remote) for each block of the latents.
template <class Launch>
void run_remote_combination(std::span<const const_latent_view> inputs, const float* coefficients,
                            std::span<const latent_view> outputs, Launch&& launch,
                            index_t limit = max_positions) {
    for_each_combination(inputs, outputs, limit, [&](auto in, auto out) {
        launch(plan_remote_combination(in, coefficients, out));
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

/// sums[r] += coefficients[r] * terms, for the rows that read the terms.
template <int Rows, int Items>
LATPAR_DEVICE void add_terms(std::uint32_t rows, const float* coefficients, std::uint32_t stride,
                             const float (&terms)[Items][4], float (&sums)[Rows][Items][4]) {
    LATPAR_UNROLL
    for (std::uint32_t r = 0; r < Rows; ++r) {
        const float coefficient = coefficients[r * stride];
        // What a zero leaves unread may hold anything.
        if (r >= rows || coefficient == 0) continue;
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) {
            LATPAR_UNROLL
            for (int e = 0; e < 4; ++e) sums[r][u][e] += coefficient * terms[u][e];
        }
    }
}

/// Sums the columns for the items of a thread and stores them. rows_of(tensor, rows) finds the
/// items in a tensor. stitch(terms) makes the terms that are added before column task.stitched;
/// it is called while the first columns are on their way.
template <int Rows, int Items, class Task, class RowsOf, class Stitch>
LATPAR_DEVICE void combine_items(const Task& task, const coefficient_table& table,
                                 const RowsOf& rows_of, const int (&end)[Items],
                                 const Stitch& stitch) {
    constexpr std::uint32_t ahead = 4 / Items;
    // Minus zero plus a first term is that term, to the bit.
    float sums[Rows][Items][4];
    LATPAR_UNROLL
    for (int r = 0; r < Rows; ++r) {
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) {
            LATPAR_UNROLL
            for (int e = 0; e < 4; ++e) sums[r][u][e] = (table.summed >> r) & 1u ? -0.0f : 0.0f;
        }
    }

    float stitched[Items][4] = {};
    for (std::uint32_t begin = 0; begin < task.columns || begin == task.stitched; begin += ahead) {
        group values[ahead][Items];
        LATPAR_UNROLL
        for (std::uint32_t j = 0; j < ahead; ++j) {
            const std::uint32_t k = begin + j;
            if (k >= task.columns || !((table.read >> k) & 1u)) continue;
            const operand& input = task.inputs[k];
            std::byte* from[Items];
            rows_of(input, from);
            load_items<4>(task.input_types[k], from, input.step, task.input_widths[k], 0, end,
                          values[j]);
        }
        if (begin == 0) stitch(stitched);
        LATPAR_UNROLL
        for (std::uint32_t j = 0; j < ahead; ++j) {
            const std::uint32_t k = begin + j;
            if (k == task.stitched) {
                add_terms(task.rows, task.stitched_coefficients, 1, stitched, sums);
            }
            if (k >= task.columns || !((table.read >> k) & 1u)) continue;
            float terms[Items][4];
            widen_items(task.input_types[k], values[j], terms);
            add_terms(task.rows, table.values + k, Task::max_columns, terms, sums);
        }
    }

    LATPAR_UNROLL
    for (std::uint32_t r = 0; r < Rows; ++r) {
        if (r >= task.rows) continue;
        const operand& output = task.outputs[r];
        std::byte* to[Items];
        rows_of(output, to);
        store_items(task.output_types[r], to, output.step, task.output_widths[r], end, sums[r]);
    }
}

/// The share of one thread that begins at `first`, for at most `Rows` outputs.
template <int Rows>
LATPAR_DEVICE void combination_share(const combination_task& task, const coefficient_table& table,
                                     std::uint32_t first) {
    constexpr int items = static_cast<int>(combination_items(Rows));
    item_place at[items];
    int end[items];
    LATPAR_UNROLL
    for (int u = 0; u < items; ++u) {
        const std::uint32_t item = first + static_cast<std::uint32_t>(u) * block_threads;
        end[u] = 0;
        if (item >= task.shape.items) continue;
        at[u] = locate(task.shape, item);
        const std::uint32_t left = task.shape.row_elements - at[u].in_row * 4;
        end[u] = left < 4 ? static_cast<int>(left) : 4;
    }
    const auto rows_of = [&](const operand& tensor, std::byte*(&rows)[items]) {
        LATPAR_UNROLL
        for (int u = 0; u < items; ++u) {
            rows[u] = tensor.row(at[u], task.shape.outer_axes) +
                      static_cast<std::int64_t>(at[u].in_row) * 4 * tensor.step;
        }
    };
    combine_items<Rows, items>(task, table, rows_of, end, [](float(&)[items][4]) {});
}
template <int Rows>
LATPAR_DEVICE void combination_share(const combination_task& task, std::uint32_t first) {
    combination_share<Rows>(task, {&task.coefficients[0][0], task.summed}, first);
}

}  // namespace latpar::inline v0::cuda::detail

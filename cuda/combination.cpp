// SPDX-License-Identifier: Apache-2.0
// The task of linear_combination.
#include "detail/combination.hpp"

#include <kernel/check.hpp>

namespace latpar::inline v0::cuda::detail {

column_list columns_read(std::size_t inputs, std::span<const float> coefficients) {
    column_list out;
    for (std::size_t k = 0; k < inputs; ++k) {
        if (kernel::detail::is_read(k, inputs, coefficients)) out.of[out.count++] = k;
    }
    return out;
}

combination_task plan_combination(std::span<const const_latent_view> inputs,
                                  std::span<const float> coefficients,
                                  std::span<const latent_view> outputs) {
    combination_task out;
    const column_list columns = columns_read(inputs.size(), coefficients);
    std::array<std::array<index_t, 5>, 2 * kernel::max_operands> room;
    std::size_t operands = 0;
    for (const latent_view& output : outputs) room[operands++] = output.strides;
    for (std::size_t j = 0; j < columns.count; ++j) {
        room[operands++] = inputs[columns.of[j]].strides;
    }
    const auto strides = std::span(room).first(operands);
    out.shape = shape_of(join_axes(outputs[0].extents, strides), 4);
    set_operands(out, inputs, columns, coefficients, outputs, strides);
    return out;
}

remote_combination plan_remote_combination(std::span<const const_latent_view> inputs,
                                           const float* coefficients,
                                           std::span<const latent_view> outputs) {
    std::array<float, kernel::max_operands * kernel::max_operands> reads{};
    remote_combination out;
    std::size_t column = 0;
    for (std::size_t k = 0; k < inputs.size(); ++k) {
        if (inputs[k].data == nullptr) continue;
        out.coefficients.input_of[column++] = static_cast<std::uint8_t>(k);
        for (std::size_t r = 0; r < outputs.size(); ++r) reads[r * inputs.size() + k] = 1;
    }
    out.coefficients.values = coefficients;
    out.coefficients.inputs = static_cast<std::uint32_t>(inputs.size());
    out.task = plan_combination(inputs, {reads.data(), inputs.size() * outputs.size()}, outputs);
    return out;
}

}  // namespace latpar::inline v0::cuda::detail

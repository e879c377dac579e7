// SPDX-License-Identifier: Apache-2.0
// The task of linear_combination.
#include "detail/combination.hpp"

namespace latpar::inline v0::cuda::detail {

combination_task plan_combination(std::span<const const_latent_view> inputs,
                                  std::span<const float> coefficients,
                                  std::span<const latent_view> outputs) {
    combination_task out;
    std::array<std::array<index_t, 5>, 2 * kernel::max_operands> strides;
    std::array<std::size_t, kernel::max_operands> column{};
    std::size_t operands = 0;
    for (const latent_view& output : outputs) strides[operands++] = output.strides;
    for (std::size_t k = 0; k < inputs.size(); ++k) {
        bool read = false;
        for (std::size_t r = 0; r < outputs.size(); ++r) {
            read = read || coefficients[r * inputs.size() + k] != 0;
        }
        if (!read) continue;
        strides[operands++] = inputs[k].strides;
        column[out.columns++] = k;
    }

    const joined_axes axes = join_axes(outputs[0].extents, std::span(strides).first(operands));
    out.shape = shape_of(axes, 4);
    out.rows = static_cast<std::uint32_t>(outputs.size());
    for (std::size_t r = 0; r < outputs.size(); ++r) {
        const index_t size = size_of(outputs[r].type);
        out.outputs[r] = operand_of(outputs[r].data, strides[r], size);
        out.output_types[r] = outputs[r].type;
        out.output_widths[r] = static_cast<std::uint8_t>(access_width(out.outputs[r], size, 4));
    }
    for (std::size_t j = 0; j < out.columns; ++j) {
        const const_latent_view& input = inputs[column[j]];
        const index_t size = size_of(input.type);
        out.inputs[j] = operand_of(input.data, strides[outputs.size() + j], size);
        out.input_types[j] = input.type;
        out.input_widths[j] = static_cast<std::uint8_t>(access_width(out.inputs[j], size, 4));
        for (std::size_t r = 0; r < outputs.size(); ++r) {
            const float coefficient = coefficients[r * inputs.size() + column[j]];
            out.coefficients[r][j] = coefficient;
            if (coefficient != 0) out.summed |= 1u << r;
        }
    }
    return out;
}

}  // namespace latpar::inline v0::cuda::detail

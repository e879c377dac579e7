// SPDX-License-Identifier: Apache-2.0
// What every kernel set refuses, in the same words.
#include "check.hpp"

namespace latpar::inline v0::kernel::detail {
namespace {

using latpar::detail::require;

// Texts are put together only when a check fails: kernels are called in every denoising step.
struct numbers {
    const std::array<index_t, 5>& values;
    friend std::ostream& operator<<(std::ostream& out, numbers n) {
        for (std::size_t i = 0; i < n.values.size(); ++i) out << (i ? ", " : "[") << n.values[i];
        return out << ']';
    }
};

struct operand {
    std::string_view role;
    index_t number = -1;
    friend std::ostream& operator<<(std::ostream& out, operand o) {
        out << o.role;
        return o.number < 0 ? out : out << ' ' << o.number;
    }
};

void check_type(dtype type, operand what) {
    require(type == dtype::f32 || type == dtype::bf16 || type == dtype::f16, what, " is ",
            name_of(type), "; use f32, bf16 or f16");
}

void check_view(const const_latent_view& view, memory_space space, operand what) {
    check_type(view.type, what);
    for (const index_t extent : view.extents) {
        require(extent >= 0, what, " has the extents ", numbers{view.extents},
                "; none may be negative");
    }
    if (view.elements() == 0) return;
    require(view.space == space, what, " lies in ", name_of(view.space),
            " memory; these kernels work on ", name_of(space), " memory");
    require(view.data != nullptr, what, " of extents ", numbers{view.extents},
            " has no memory; set its data pointer");
    const auto address = reinterpret_cast<std::uintptr_t>(view.data);
    require(address % static_cast<std::uintptr_t>(size_of(view.type)) == 0, what, " of ",
            name_of(view.type), " begins at an address that is not a multiple of ",
            size_of(view.type), "; align it to its element type");
}

/// Two views that begin at the same element must be the same, or a kernel would read what it has
/// already overwritten.
void check_aliasing(const const_latent_view& read, const const_latent_view& written, operand what,
                    operand other) {
    require(read.elements() == 0 || read.data != written.data || is_same_memory(read, written),
            what, " and ", other, " begin at the same element but differ in type or strides (",
            name_of(read.type), ' ', numbers{read.strides}, " and ", name_of(written.type), ' ',
            numbers{written.strides},
            "); in place they must agree, otherwise they must be disjoint");
}

void check_parts(std::span<const latent_view> outputs, axis along,
                 std::span<const stitch_part> parts, memory_space space) {
    const std::size_t cut = 2 + index_of(along);
    for (std::size_t k = 0; k < parts.size(); ++k) {
        const const_latent_view& prediction = parts[k].prediction;
        const operand what{"stitch part", static_cast<index_t>(k)};
        check_view(prediction, space, what);
        auto expected = outputs[0].extents;
        expected[cut] = prediction.extents[cut];
        require(prediction.extents == expected, what, " has the extents ",
                numbers{prediction.extents}, " for an output of ", numbers{outputs[0].extents},
                "; they may differ along ", name_of(along), " only");
        require(static_cast<index_t>(parts[k].weights.size()) == prediction.extents[cut], what,
                " has ", parts[k].weights.size(), " weights for ", prediction.extents[cut],
                " positions along ", name_of(along), "; give one for each");
        for (const latent_view& output : outputs) {
            require(prediction.elements() == 0 || prediction.data != output.data, what,
                    " begins where the output does; a stitch is not done in place");
        }
    }
}

/// All inputs but the stitched one, if there is one.
void check_combination(std::span<const const_latent_view> inputs,
                       std::span<const float> coefficients, std::span<const latent_view> outputs,
                       std::size_t stitched, memory_space space) {
    require(inputs.size() <= max_operands && outputs.size() <= max_operands,
            "a linear combination of ", inputs.size(), " inputs to ", outputs.size(),
            " outputs was asked for; it takes at most ", max_operands, " of each, split it");
    require(coefficients.size() == inputs.size() * outputs.size(), "a linear combination of ",
            inputs.size(), " inputs to ", outputs.size(), " outputs was given ",
            coefficients.size(), " coefficients; it takes ", inputs.size() * outputs.size());
    for (std::size_t r = 0; r < outputs.size(); ++r) {
        const operand what{"linear combination output", static_cast<index_t>(r)};
        check_view(outputs[r], space, what);
        require(outputs[r].extents == outputs[0].extents, what, " has the extents ",
                numbers{outputs[r].extents}, ", output 0 has ", numbers{outputs[0].extents},
                "; they must be the same");
        for (std::size_t other = 0; other < r; ++other) {
            require(outputs[r].elements() == 0 || outputs[r].data != outputs[other].data, what,
                    " and output ", other,
                    " begin at the same element; give each output its own memory");
        }
    }
    for (std::size_t k = 0; k < inputs.size(); ++k) {
        if (k == stitched || !is_read(k, inputs.size(), coefficients)) continue;
        const operand what{"linear combination input", static_cast<index_t>(k)};
        check_view(inputs[k], space, what);
        require(inputs[k].extents == outputs[0].extents, what, " has the extents ",
                numbers{inputs[k].extents}, ", the outputs have ", numbers{outputs[0].extents},
                "; they must be the same");
        for (std::size_t r = 0; r < outputs.size(); ++r) {
            check_aliasing(inputs[k], outputs[r], what, {"output", static_cast<index_t>(r)});
        }
    }
}

}  // namespace

bool is_read(std::size_t input, std::size_t inputs, std::span<const float> coefficients) noexcept {
    for (std::size_t i = input; i < coefficients.size(); i += inputs) {
        if (coefficients[i] != 0) return true;
    }
    return false;
}

bool is_same_memory(const const_latent_view& a, const const_latent_view& b) noexcept {
    if (a.data != b.data || a.type != b.type || a.extents != b.extents) return false;
    for (std::size_t i = 0; i < a.extents.size(); ++i) {
        if (a.extents[i] > 1 && a.strides[i] != b.strides[i]) return false;
    }
    return true;
}

void check_copy(const const_latent_view& source, const latent_view& target, memory_space space) {
    const operand from{"the source of a copy"};
    const operand to{"the target of a copy"};
    check_view(source, space, from);
    check_view(target, space, to);
    require(source.extents == target.extents, "a copy from ", numbers{source.extents}, " to ",
            numbers{target.extents}, "; the extents must be the same");
    check_aliasing(source, target, from, to);
}

void check_merge(const latent_view& output, const latent_view& lse, const const_latent_view& part,
                 const const_latent_view& part_lse, memory_space space) {
    const operand to{"the attention to merge into"};
    const operand from{"the attention to merge"};
    check_view(output, space, to);
    check_view(part, space, from);
    require(output.extents == part.extents, from, " has the extents ", numbers{part.extents}, ", ",
            to, " has ", numbers{output.extents}, "; they must be the same");
    auto expected = output.extents;
    expected[4] = 1;
    for (const const_latent_view& logs : {const_latent_view(lse), part_lse}) {
        const operand what{"the lse of a merge"};
        check_view(logs, space, what);
        require(logs.type == dtype::f32, what, " is ", name_of(logs.type), "; use f32");
        require(logs.extents == expected, what, " has the extents ", numbers{logs.extents},
                "; use ", numbers{expected}, ", one for each token and head");
    }
    require(output.elements() == 0 || (output.data != part.data && lse.data != part_lse.data), from,
            " is what it is merged into; merge two results");
}

void check_round(const latent_view& values, dtype type, memory_space space) {
    check_view(values, space, {"the latent to round"});
    check_type(type, {"the type to round to"});
}

void check_stitch(const latent_view& output, axis along, std::span<const stitch_part> parts,
                  memory_space space) {
    check_view(output, space, {"the output of a stitch"});
    check_parts({&output, 1}, along, parts, space);
}

void check_linear_combination(std::span<const const_latent_view> inputs,
                              std::span<const float> coefficients,
                              std::span<const latent_view> outputs, memory_space space) {
    check_combination(inputs, coefficients, outputs, inputs.size(), space);
}

void check_remote_combination(std::span<const const_latent_view> inputs, std::size_t coefficients,
                              std::span<const latent_view> outputs, memory_space space) {
    std::array<float, max_operands * max_operands> reads{};
    for (std::size_t i = 0; i < reads.size() && !inputs.empty(); ++i) {
        reads[i] = inputs[i % inputs.size()].data == nullptr ? 0.0f : 1.0f;
    }
    check_linear_combination(inputs, {reads.data(), std::min(coefficients, reads.size())}, outputs,
                             space);
}

void check_stitch_combination(const stitched_input& stitched,
                              std::span<const const_latent_view> inputs,
                              std::span<const float> coefficients,
                              std::span<const latent_view> outputs, memory_space space) {
    require(stitched.index < inputs.size(), "input ", stitched.index, " of ", inputs.size(),
            " was to be stitched; use the number of an input");
    check_type(stitched.type, {"the stitched input"});
    check_combination(inputs, coefficients, outputs, stitched.index, space);
    if (!is_read(stitched.index, inputs.size(), coefficients)) return;
    require(inputs[stitched.index].data == nullptr, "input ", stitched.index,
            " is stitched but has memory; give an empty view in its place");
    check_parts(outputs, stitched.along, stitched.parts, space);
}

void check_count(const const_latent_view& values, memory_space space) {
    check_view(values, space, {"the latent to count in"});
}

}  // namespace latpar::inline v0::kernel::detail

// SPDX-License-Identifier: Apache-2.0
// The kernel_set concept: the few memory-bound operations that policies need.
#pragma once

#include <latpar/core/view.hpp>

#include <concepts>
#include <span>

namespace latpar::inline v0 {

namespace kernel {

/// The most inputs, and the most outputs, of one linear combination.
inline constexpr std::size_t max_operands = 16;

/// A prediction that covers part of an axis, and its weight at each position that it covers.
struct stitch_part {
    const_latent_view prediction;
    /// Where it begins along the axis, counted from the first position of the output.
    index_t begin = 0;
    /// One weight for each of its positions along the axis, in host memory.
    std::span<const float> weights{};
};

/// The input of a combination that is stitched on the way, in no memory of its own.
struct stitched_input {
    /// Which input it is; its view among the inputs is empty.
    std::size_t index = 0;
    axis along = axis::t;
    /// What a stitched value is rounded to before it is combined.
    dtype type = dtype::f32;
    std::span<const stitch_part> parts{};
};

/// One of several copies that are made together.
struct copy_pair {
    const_latent_view source;
    latent_view target;
};

}  // namespace kernel

/// A set of kernels for one memory space.
///
/// Stream: all are ordered on `stream`; host kernels have finished on return.
/// Memory: any strides; f32, bf16 or f16. Arithmetic is in float32, in the order that is stated,
/// and rounded once to the output's type.
/// Errors: usage_error for extents that do not fit together, or a dtype that is not computed with.
///
/// - `copy(source, target, stream)`: the same extents; converts the type, rounding to nearest even.
///   Packing a box, unpacking it and converting for the wire are all this operation. Source and
///   target may be the same memory if their strides and types are the same; otherwise disjoint.
/// - `copy_all(copies, stream)`: several copies, none of which reads or writes what another writes;
///   on a device in one launch.
/// - `round(values, type, stream)`: rounds each value, in place, to what `type` can hold: what the
///   owner of a value does before it travels in that type, so that every rank uses the same.
/// - `stitch(output, axis, parts, stream)`: at every position the sum over the parts that cover it,
///   in their order, of weight times prediction. Parts may reach beyond the output on either side.
/// - `linear_combination(inputs, coefficients, outputs, stream)`: outputs[r] = sum over k, in
///   order, of coefficients[r * inputs.size() + k] * inputs[k]; a zero coefficient leaves its input
///   unread, a coefficient of one takes it as it is. An input that no output reads may be an empty
///   view. An output may be one of the inputs, in place. At most `kernel::max_operands` inputs and
///   as many outputs.
/// - `stitch_combination(stitched, inputs, coefficients, outputs, stream)`: a linear combination one
///   of whose inputs is what `stitch` would write into a tensor of the type `stitched.type`, to the
///   bit, without that tensor. No output begins where a part does.
/// - `merge_attention(output, lse, part, part_lse, stream)`: makes of two results of attention over
///   the same queries and different keys that over all keys, in place: `output` and `part` are
///   [1, 1, tokens, heads, head_dim], the logs of their sums of exponentials [1, 1, tokens, heads,
///   1] in f32. Minus infinity stands for no key at all.
template <class K>
concept kernel_set = std::copyable<K> &&
    requires(const K& kernels, const_latent_view source, latent_view target, axis along,
             std::span<const kernel::stitch_part> parts, std::span<const const_latent_view> inputs,
             std::span<const float> coefficients, std::span<const latent_view> outputs,
             std::span<const kernel::copy_pair> copies, const kernel::stitched_input& stitched,
             stream_ref stream) {
    { kernels.space() } -> std::same_as<memory_space>;
    { kernels.copy(source, target, stream) } -> std::same_as<void>;
    { kernels.copy_all(copies, stream) } -> std::same_as<void>;
    { kernels.round(target, dtype::bf16, stream) } -> std::same_as<void>;
    { kernels.stitch(target, along, parts, stream) } -> std::same_as<void>;
    { kernels.linear_combination(inputs, coefficients, outputs, stream) } -> std::same_as<void>;
    {
        kernels.stitch_combination(stitched, inputs, coefficients, outputs, stream)
        } -> std::same_as<void>;
    { kernels.merge_attention(target, target, source, source, stream) } -> std::same_as<void>;
};

namespace kernel {

/// The least that is a kernel_set; declared only, to state what other concepts take.
struct archetype {
    memory_space space() const;
    void copy(const_latent_view, latent_view, stream_ref) const;
    void copy_all(std::span<const copy_pair>, stream_ref) const;
    void round(latent_view, dtype, stream_ref) const;
    void stitch(latent_view, axis, std::span<const stitch_part>, stream_ref) const;
    void linear_combination(std::span<const const_latent_view>, std::span<const float>,
                            std::span<const latent_view>, stream_ref) const;
    void stitch_combination(const stitched_input&, std::span<const const_latent_view>,
                            std::span<const float>, std::span<const latent_view>, stream_ref) const;
    void merge_attention(latent_view, latent_view, const_latent_view, const_latent_view,
                         stream_ref) const;
};
static_assert(kernel_set<archetype>);

}  // namespace kernel
}  // namespace latpar::inline v0

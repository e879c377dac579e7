// SPDX-License-Identifier: Apache-2.0
// The task of merge_attention.
#include "detail/merge.hpp"

namespace latpar::inline v0::cuda::detail {
namespace {

/// A tensor whose rows are heads: its outer axes from the joined strides, which leave out the row.
operand heads_of(const std::byte* data, const std::array<index_t, 5>& joined, index_t row_stride,
                 index_t size) {
    operand out = operand_of(data, {row_stride, joined[0], joined[1], joined[2], joined[3]}, size);
    return out;
}

}  // namespace

merge_task plan_merge(const latent_view& output, const latent_view& lse,
                      const const_latent_view& part, const const_latent_view& part_lse) {
    merge_task out;
    std::array<std::array<index_t, 5>, 4> strides{output.strides, part.strides, lse.strides,
                                                  part_lse.strides};
    // A head's last axis has one log, so it is dropped, and the joined axes are those of heads.
    joined_axes axes = join_axes(lse.extents, strides);
    const bool halves = output.type != dtype::f32 && part.type != dtype::f32;
    const int count = halves ? 8 : 4;

    joined_axes with_head;
    with_head.depth = axes.depth + 1;
    // A head of no elements has a log all the same.
    with_head.extents[0] = std::max<index_t>(output.extents[4], 1);
    for (std::size_t d = 0; d < axes.depth; ++d) with_head.extents[d + 1] = axes.extents[d];
    out.group = static_cast<std::uint8_t>(count);
    out.shape = shape_of(with_head, count);
    out.shape.row_elements = static_cast<std::uint32_t>(output.extents[4]);
    const std::uint32_t per_head = out.shape.items_per_row.divisor;
    out.heads = static_cast<std::uint32_t>(lse.elements());
    out.heads_per_block = std::max(merge_tile / per_head, 1u);

    const index_t output_size = size_of(output.type);
    const index_t part_size = size_of(part.type);
    const index_t log_size = size_of(dtype::f32);
    out.output = heads_of(output.data, strides[0], output.strides[4], output_size);
    out.part = heads_of(part.data, strides[1], part.strides[4], part_size);
    out.lse = heads_of(lse.data, strides[2], 0, log_size);
    out.part_lse = heads_of(part_lse.data, strides[3], 0, log_size);
    out.output_type = output.type;
    out.part_type = part.type;
    out.output_width = static_cast<std::uint8_t>(access_width(out.output, output_size, count));
    out.part_width = static_cast<std::uint8_t>(access_width(out.part, part_size, count));
    return out;
}

}  // namespace latpar::inline v0::cuda::detail

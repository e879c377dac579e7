// SPDX-License-Identifier: Apache-2.0
// The tasks of copy, copy_all and round.
#include "detail/copy.hpp"

#include <numeric>

namespace latpar::inline v0::cuda::detail {

copy_task plan_copy(const const_latent_view& source, const latent_view& target, dtype via) {
    copy_task out;
    out.source_type = source.type;
    out.target_type = target.type;
    out.via = via;
    const index_t source_size = size_of(source.type);
    const index_t target_size = size_of(target.type);
    std::array<std::array<index_t, 5>, 2> strides{target.strides, source.strides};
    const joined_axes axes = join_axes(target.extents, strides);
    out.target = operand_of(target.data, strides[0], target_size);
    out.source = operand_of(source.data, strides[1], source_size);
    // Between the two types of two bytes, or by way of the other: too rare for loops of their own.
    const bool is_rare = source_size == 2 && target_size == 2 &&
                         (source.type != target.type || (via != dtype::f32 && via != source.type));
    if (is_rare || out.source.step != source_size || out.target.step != target_size) {
        out.shape = shape_of(axes, 1);
        return out;
    }

    const int count = copy_group(target_size);
    out.rows_are_even = access_width(out.target, target_size, count) == count;
    out.shape = shape_of(axes, count, out.rows_are_even ? 0 : count - 1);
    // Axes lie in rising order: rows that touch fill the sectors between them. In long rows little
    // is gained and, from narrower types, some lost. What is rounded in place is read anyway.
    constexpr index_t longest = 2048;
    const index_t row_bytes = index_t{out.shape.row_elements} * target_size;
    const int sector = sector_bytes / static_cast<int>(target_size);
    const bool fill_sectors =
        row_bytes % sector_bytes == 0 && access_width(out.target, target_size, sector) == sector;
    const bool touch = out.shape.outer_axes == 0 || out.target.outer[0] == row_bytes;
    out.fetches_parts = via == dtype::f32 && row_bytes <= longest && !touch && !fill_sectors;
    // An item begins at a multiple of `count` elements of the target; whatever source and target
    // are apart, from row to row too, limits a load.
    const auto element = [](const std::byte* data, index_t size) {
        return static_cast<index_t>(reinterpret_cast<std::uintptr_t>(data) /
                                    static_cast<std::uintptr_t>(size));
    };
    index_t width = std::gcd(index_t{count}, element(out.source.data, source_size) -
                                                 element(out.target.data, target_size));
    for (std::size_t d = 0; d < 4; ++d) {
        width =
            std::gcd(width, out.source.outer[d] / source_size - out.target.outer[d] / target_size);
    }
    out.width = static_cast<std::uint8_t>(width);
    return out;
}

}  // namespace latpar::inline v0::cuda::detail

// SPDX-License-Identifier: Apache-2.0
// The loop that a kernel's threads share.
#include "detail/loop_shape.hpp"

#include <cstdlib>
#include <numeric>

namespace latpar::inline v0::cuda::detail {

joined_axes join_axes(const std::array<index_t, 5>& extents,
                      std::span<std::array<index_t, 5>> strides, std::optional<std::size_t> keep) {
    std::array<std::size_t, 5> order{4, 3, 2, 1, 0};
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        const index_t stride_a = std::abs(strides[0][a]);
        const index_t stride_b = std::abs(strides[0][b]);
        return stride_a != stride_b ? stride_a < stride_b : a > b;
    });

    joined_axes out;
    out.depth = 0;
    std::array<std::size_t, 5> from{};  // the innermost axis of each joined one
    std::size_t count = 0;
    for (const std::size_t d : order) {
        if (extents[d] == 1 && d != keep) continue;
        const bool joins = count > 0 && d != keep && from[count - 1] != keep &&
                           std::all_of(strides.begin(), strides.end(), [&](const auto& own) {
                               return own[d] == own[from[count - 1]] * out.extents[count - 1];
                           });
        if (joins) {
            out.extents[count - 1] *= extents[d];
            continue;
        }
        if (d == keep) out.kept = count;
        from[count] = d;
        out.extents[count] = extents[d];
        ++count;
    }
    for (auto& own : strides) {
        std::array<index_t, 5> joined{};
        for (std::size_t i = 0; i < count; ++i) joined[i] = own[from[i]];
        own = joined;
    }
    out.depth = std::max<std::size_t>(count, 1);
    return out;
}

loop_shape shape_of(const joined_axes& axes, index_t count, index_t slack) {
    loop_shape out;
    const index_t per_row = (axes.extents[0] + slack + count - 1) / count;
    index_t items = per_row;
    for (std::size_t d = 1; d < axes.depth; ++d) items *= axes.extents[d];
    out.row_elements = static_cast<std::uint32_t>(axes.extents[0]);
    out.items = static_cast<std::uint32_t>(items);
    out.outer_axes = static_cast<std::int32_t>(axes.depth) - 1;
    if (items == 0) return out;
    out.items_per_row = divider(static_cast<std::uint32_t>(per_row));
    for (std::size_t d = 1; d + 1 < axes.depth; ++d) {
        out.middle[d - 1] = divider(static_cast<std::uint32_t>(axes.extents[d]));
    }
    return out;
}

operand operand_of(const std::byte* data, const std::array<index_t, 5>& strides, index_t size) {
    operand out;
    // One type serves for what is read and what is written; a kernel knows which is which.
    out.data = const_cast<std::byte*>(data);
    out.step = strides[0] * size;
    for (std::size_t d = 0; d < 4; ++d) out.outer[d] = strides[d + 1] * size;
    return out;
}

int access_width(const operand& tensor, index_t size, int count) {
    if (tensor.step != size) return 1;
    index_t common = size * count;
    common = std::gcd(common, static_cast<index_t>(reinterpret_cast<std::uintptr_t>(tensor.data) %
                                                   static_cast<std::uintptr_t>(common)));
    for (const index_t step : tensor.outer) common = std::gcd(common, step);
    return static_cast<int>(common / size);
}

}  // namespace latpar::inline v0::cuda::detail

// SPDX-License-Identifier: Apache-2.0
// The loop that a kernel's threads share: few axes, 32-bit indices, no division.
#pragma once

#include "portable.hpp"

#include <latpar/core/view.hpp>

#include <algorithm>
#include <optional>
#include <utility>

namespace latpar::inline v0::cuda::detail {

/// More positions than this are not worked on in one launch, so that 32-bit indices serve.
inline constexpr index_t max_positions = index_t{1} << 30;

/// Divides by a constant with a multiplication: exact for every n below 2^31.
///
/// Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994.
struct divider {
    std::uint32_t divisor = 1;
    std::uint32_t multiplier = 1;
    std::uint32_t shift = 0;

    divider() = default;
    /// `by` is in [1, 2^31].
    explicit divider(std::uint32_t by)
        : divisor(by), shift(static_cast<std::uint32_t>(std::bit_width(by - 1))) {
        const std::uint64_t power = std::uint64_t{1} << shift;
        multiplier = static_cast<std::uint32_t>(((power - by) << 32) / by + 1);
    }

    [[nodiscard]] LATPAR_DEVICE std::uint32_t quotient(std::uint32_t n) const {
#ifdef __CUDA_ARCH__
        const std::uint32_t high = __umulhi(n, multiplier);
#else
        const auto high = static_cast<std::uint32_t>((std::uint64_t{n} * multiplier) >> 32);
#endif
        return (high + n) >> shift;
    }
};

/// Rows of `row_elements` positions, and up to four axes of them; the unit of work is an item, a
/// group of neighbours in a row.
struct loop_shape {
    divider items_per_row;
    divider middle[3];  ///< the extents of the axes above the row, but for the last
    std::uint32_t row_elements = 0;
    std::uint32_t items = 0;
    std::int32_t outer_axes = 0;
};

/// Where an item lies: its place in its row, and the row.
struct item_place {
    std::uint32_t in_row = 0;
    std::uint32_t outer[4] = {};
};

LATPAR_DEVICE item_place locate(const loop_shape& shape, std::uint32_t item) {
    item_place out;
    std::uint32_t rest = shape.items_per_row.quotient(item);
    out.in_row = item - rest * shape.items_per_row.divisor;
    LATPAR_UNROLL
    for (int d = 0; d < 3; ++d) {
        if (d + 1 < shape.outer_axes) {
            const std::uint32_t next = shape.middle[d].quotient(rest);
            out.outer[d] = rest - next * shape.middle[d].divisor;
            rest = next;
        } else if (d + 1 == shape.outer_axes) {
            out.outer[d] = rest;
        }
    }
    if (shape.outer_axes == 4) out.outer[3] = rest;
    return out;
}

/// A tensor as a kernel walks it; steps count bytes.
struct operand {
    std::byte* data = nullptr;
    std::int64_t step = 0;  ///< from one position of a row to the next
    std::int64_t outer[4] = {};

    [[nodiscard]] LATPAR_DEVICE std::byte* row(const item_place& at, int axes) const {
        std::int64_t offset = 0;
        LATPAR_UNROLL
        for (int d = 0; d < 4; ++d) {
            if (d < axes) offset += static_cast<std::int64_t>(at.outer[d]) * outer[d];
        }
        return data + offset;
    }
};

/// The fewest axes that visit the positions of a loop, innermost first.
struct joined_axes {
    std::size_t depth = 1;
    std::array<index_t, 5> extents{1, 1, 1, 1, 1};
    std::size_t kept = 0;  ///< where the axis went that was to stay an axis of its own
};

/// Sorts the axes by their stride in the first operand, drops those of one position, and joins
/// neighbours that are one longer axis for every operand.
///
/// `strides` holds one set for each operand and is rewritten; what lies beyond the depth is 0.
[[nodiscard]] joined_axes join_axes(const std::array<index_t, 5>& extents,
                                    std::span<std::array<index_t, 5>> strides,
                                    std::optional<std::size_t> keep = std::nullopt);

/// The loop over `axes` with items of up to `count` neighbours; `slack` more positions a row leave
/// room for rows that begin within a group.
[[nodiscard]] loop_shape shape_of(const joined_axes& axes, index_t count, index_t slack = 0);

/// `strides` in elements of `size` bytes.
[[nodiscard]] operand operand_of(const std::byte* data, const std::array<index_t, 5>& strides,
                                 index_t size);

/// How many neighbours, a power of two up to `count`, one access can take wherever a group of
/// `count` begins; 1 if they are no neighbours in memory.
[[nodiscard]] int access_width(const operand& tensor, index_t size, int count);

/// Calls f(origin, extents) for blocks of at most `limit` positions that make up the whole.
template <class F>
void for_each_block(const std::array<index_t, 5>& extents, index_t limit, F&& f,
                    const std::array<index_t, 5>& origin = {}) {
    index_t positions = 1;
    for (const index_t extent : extents) positions *= extent;
    if (positions == 0) return;
    if (positions <= limit) {
        f(origin, extents);
        return;
    }
    const auto longest = static_cast<std::size_t>(std::max_element(extents.begin(), extents.end()) -
                                                  extents.begin());
    std::array<index_t, 5> first = extents;
    // In multiples of 64 where there is room for it, so that the second half is as aligned.
    first[longest] /= 2;
    if (first[longest] >= 64) first[longest] -= first[longest] % 64;
    std::array<index_t, 5> second = extents;
    second[longest] -= first[longest];
    std::array<index_t, 5> second_origin = origin;
    second_origin[longest] += first[longest];
    for_each_block(first, limit, f, origin);
    for_each_block(second, limit, f, second_origin);
}

/// The part of a view that a block covers.
template <class Byte>
[[nodiscard]] basic_view<Byte, 5> block_of(basic_view<Byte, 5> view,
                                           const std::array<index_t, 5>& origin,
                                           const std::array<index_t, 5>& extents) {
    view.data += view.offset(origin) * size_of(view.type);
    view.extents = extents;
    return view;
}

}  // namespace latpar::inline v0::cuda::detail

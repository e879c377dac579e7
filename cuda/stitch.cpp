// SPDX-License-Identifier: Apache-2.0
// The ranges and the loop that a stitch is launched for.
#include "detail/stitch.hpp"

#include <numeric>

namespace latpar::inline v0::cuda::detail {

stitch_range next_stitch_range(std::span<const kernel::stitch_part> parts, std::size_t cut,
                               stitch_range whole, std::size_t max_parts, std::size_t max_weights) {
    const auto needs = [&](stitch_range range) {
        std::size_t covering = 0;
        std::size_t weights = 0;
        for (const kernel::stitch_part& part : parts) {
            const stitch_range own = covered(part, cut, range);
            if (own.begin >= own.end) continue;
            ++covering;
            weights += static_cast<std::size_t>(own.end - own.begin);
        }
        return covering <= max_parts && weights <= max_weights;
    };
    if (needs(whole)) return whole;
    // What a range needs grows with it.
    index_t fits = whole.begin;
    for (index_t fails = whole.end; fails - fits > 1;) {
        const index_t middle = fits + (fails - fits) / 2;
        (needs({whole.begin, middle}) ? fits : fails) = middle;
    }
    return {whole.begin, fits};
}

void check_stitch_cover(std::span<const kernel::stitch_part> parts, std::size_t cut,
                        std::size_t most) {
    if (parts.size() <= most) return;
    // Cover only grows where a part begins.
    for (const kernel::stitch_part& edge : parts) {
        std::size_t covering = 0;
        for (const kernel::stitch_part& part : parts) {
            const stitch_range own = covered(part, cut, {edge.begin, edge.begin + 1});
            covering += own.begin < own.end;
        }
        latpar::detail::require(covering <= most, "a stitch of ", covering,
                                " parts over one position was asked for; the kernels for cuda "
                                "memory take at most ",
                                most, ", stitch them in groups");
    }
}

stitch_shape stitch_shape_of(const joined_axes& axes, std::span<std::array<index_t, 5>> strides,
                             index_t items) {
    // The cut goes to the front of the axes above the row.
    std::array<std::size_t, 5> order{};
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (axes.kept > 0) {
        std::rotate(order.begin() + 1, order.begin() + static_cast<std::ptrdiff_t>(axes.kept),
                    order.begin() + static_cast<std::ptrdiff_t>(axes.kept) + 1);
    }
    for (std::array<index_t, 5>& own : strides) {
        const std::array<index_t, 5> before = own;
        for (std::size_t d = 0; d < 5; ++d) own[d] = before[order[d]];
    }

    stitch_shape out;
    out.cuts_rows = axes.kept == 0;
    const auto groups = static_cast<std::uint32_t>((axes.extents[0] + 3) / 4);
    out.groups = divider(groups);
    out.row_elements = static_cast<std::uint32_t>(axes.extents[0]);
    const std::size_t first = out.cuts_rows ? 1 : 2;
    if (!out.cuts_rows)
        out.positions = divider(static_cast<std::uint32_t>(axes.extents[axes.kept]));
    out.threads = groups * out.positions.divisor;
    for (std::size_t d = first; d < axes.depth; ++d) {
        auto extent = static_cast<std::uint32_t>(axes.extents[order[d]]);
        if (d == first) {
            out.bundled = extent;
            extent = (extent + static_cast<std::uint32_t>(items) - 1) /
                     static_cast<std::uint32_t>(items);
        }
        out.threads *= extent;
        if (d + 1 < axes.depth) out.others[d - first] = divider(extent);
        ++out.other_axes;
    }
    return out;
}

}  // namespace latpar::inline v0::cuda::detail

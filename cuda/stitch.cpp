// SPDX-License-Identifier: Apache-2.0
// The ranges that a stitch is launched for.
#include "detail/stitch.hpp"

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

}  // namespace latpar::inline v0::cuda::detail

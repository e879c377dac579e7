// SPDX-License-Identifier: Apache-2.0
// How an axis of patches is cut into overlapping parts.
#pragma once

#include <latpar/core/dtype.hpp>

#include <vector>

namespace latpar::inline v0 {

/// How the cores of the parts are chosen.
enum class partition : std::uint8_t {
    paper,     ///< every core has ceil(patches / parts) patches but the last ones
    balanced,  ///< the largest part, overlap included, is as small as it can be
};

/// A part along one axis, in patches: its core, and the core with its overlap on both sides.
struct axis_part {
    index_t core_begin = 0;
    index_t core_end = 0;
    index_t begin = 0;
    index_t end = 0;

    /// True if it has no core: its rank idles.
    [[nodiscard]] constexpr bool idle() const noexcept { return core_begin == core_end; }
    [[nodiscard]] constexpr index_t size() const noexcept { return end - begin; }
    friend constexpr bool operator==(const axis_part&, const axis_part&) = default;
};

/// Patches of overlap on each side of a core: floor(overlap * ceil(patches / parts) + 1e-9).
[[nodiscard]] index_t overlap_patches(index_t patches, int parts, double overlap);

/// Cuts `patches` into `parts` cores that cover them in order, each extended by the overlap and
/// clamped to the axis. A part whose core is empty is empty altogether.
///
/// Errors: usage_error unless patches >= 1, parts >= 1 and 0 <= overlap <= parts - 1.
/// Source: `paper` is Latent Parallelism (arXiv 2512.07350); `balanced` grows each core in turn
/// until its extended part reaches the smallest size with which all patches are covered: parts at
/// the ends, which overlap on one side only, get larger cores.
[[nodiscard]] std::vector<axis_part> partition_axis(index_t patches, int parts, double overlap,
                                                    partition kind);

}  // namespace latpar::inline v0

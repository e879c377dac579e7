// SPDX-License-Identifier: Apache-2.0
// How an axis of patches is cut into overlapping parts.
#include <latpar/core/error.hpp>
#include <latpar/step/partition.hpp>

#include <algorithm>
#include <cmath>

namespace latpar::inline v0 {
namespace {

axis_part extended(index_t core_begin, index_t core_end, index_t overlap, index_t patches) {
    if (core_begin == core_end) return {core_begin, core_begin, core_begin, core_begin};
    return {core_begin, core_end, std::max<index_t>(0, core_begin - overlap),
            std::min(patches, core_end + overlap)};
}

/// The cores of parts that are each as large as `limit` lets them be, in order.
std::vector<axis_part> greedy(index_t patches, int parts, index_t overlap, index_t limit) {
    std::vector<axis_part> out;
    index_t begin = 0;
    for (int part = 0; part < parts; ++part) {
        const index_t first = std::max<index_t>(0, begin - overlap);
        const index_t end = patches - first <= limit
                                ? patches
                                : std::clamp(first + limit - overlap, begin, patches);
        out.push_back(extended(begin, end, overlap, patches));
        begin = end;
    }
    return out;
}

std::vector<axis_part> balanced(index_t patches, int parts, index_t overlap) {
    // Larger limits cover no less, so the smallest that covers all can be bisected.
    index_t fails = 0;
    index_t covers = patches;
    while (covers - fails > 1) {
        const index_t limit = fails + (covers - fails) / 2;
        const bool all = greedy(patches, parts, overlap, limit).back().core_end == patches;
        (all ? covers : fails) = limit;
    }
    return greedy(patches, parts, overlap, covers);
}

}  // namespace

index_t overlap_patches(index_t patches, int parts, double overlap) {
    const index_t core = (patches + parts - 1) / parts;
    return static_cast<index_t>(std::floor(overlap * static_cast<double>(core) + 1e-9));
}

std::vector<axis_part> partition_axis(index_t patches, int parts, double overlap, partition kind) {
    detail::require(patches >= 1, "an axis of ", patches,
                    " patches cannot be cut; it needs 1 or more");
    detail::require(parts >= 1, "an axis cannot be cut into ", parts, " parts; ask for 1 or more");
    detail::require(overlap >= 0 && overlap <= parts - 1, "overlap ", overlap,
                    " is out of range for ", parts, " parts; it may be 0 to ", parts - 1);
    const index_t width = overlap_patches(patches, parts, overlap);
    if (kind == partition::balanced) return balanced(patches, parts, width);
    const index_t core = (patches + parts - 1) / parts;
    std::vector<axis_part> out;
    for (index_t part = 0; part < parts; ++part) {
        out.push_back(extended(std::min(part * core, patches), std::min((part + 1) * core, patches),
                               width, patches));
    }
    return out;
}

}  // namespace latpar::inline v0

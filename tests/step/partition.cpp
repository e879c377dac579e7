// SPDX-License-Identifier: Apache-2.0
// Cutting an axis: the paper's partition by hand, and both partitions exhaustively.
#include <latpar/core/error.hpp>
#include <latpar/step/partition.hpp>

#include <support/catch.hpp>

#include <algorithm>
#include <limits>

using namespace latpar;

namespace {

index_t largest(const std::vector<axis_part>& parts) {
    index_t out = 0;
    for (const axis_part& part : parts) out = std::max(out, part.size());
    return out;
}

/// Cores cover [0, patches) in order, and each part is its core with the overlap, clamped.
bool is_partition(const std::vector<axis_part>& parts, index_t patches, index_t overlap) {
    index_t next = 0;
    for (const axis_part& part : parts) {
        if (part.core_begin != next || part.core_end < next) return false;
        next = part.core_end;
        if (part.idle()) {
            if (part.size() != 0) return false;
            continue;
        }
        if (part.begin != std::max<index_t>(0, part.core_begin - overlap)) return false;
        if (part.end != std::min(patches, part.core_end + overlap)) return false;
    }
    return next == patches;
}

}  // namespace

TEST_CASE("the paper's partition clamps overlaps at both ends of the axis") {
    // 13 patches, 4 parts: cores of 4, 4, 4, 1; overlap floor(0.5 * 4) = 2.
    const std::vector<axis_part> expected{
        {0, 4, 0, 6}, {4, 8, 2, 10}, {8, 12, 6, 13}, {12, 13, 10, 13}};
    CHECK(partition_axis(13, 4, 0.5, partition::paper) == expected);
    // 21 patches: cores of 6, 6, 6, 3; overlap 3.
    const std::vector<axis_part> wan{
        {0, 6, 0, 9}, {6, 12, 3, 15}, {12, 18, 9, 21}, {18, 21, 15, 21}};
    CHECK(partition_axis(21, 4, 0.5, partition::paper) == wan);
    CHECK(largest(wan) == 12);
}

TEST_CASE("an overlap wider than the neighbour is clamped to the axis") {
    const std::vector<axis_part> expected{{0, 1, 0, 3}, {1, 2, 0, 3}, {2, 3, 0, 3}};
    CHECK(partition_axis(3, 3, 2.0, partition::paper) == expected);
}

TEST_CASE("more parts than patches leave the last parts idle") {
    const auto parts = partition_axis(3, 5, 1.0, partition::paper);
    CHECK(is_partition(parts, 3, 1));
    CHECK_FALSE(parts[2].idle());
    CHECK(parts[3].idle());
    CHECK(parts[4].idle());
    // ceil(5 / 4) = 2: the fourth part has nothing left.
    CHECK(partition_axis(5, 4, 0, partition::paper)[3].idle());
}

TEST_CASE("the overlap is rounded down, but not by a rounding error") {
    CHECK(overlap_patches(21, 4, 0.5) == 3);
    CHECK(overlap_patches(10, 1, 0.0) == 0);
    CHECK(overlap_patches(30, 3, 0.3) == 3);  // 0.3 * 10 is below 3 in binary
    CHECK(overlap_patches(30, 3, 0.29) == 2);
}

TEST_CASE("balanced gives the ends larger cores") {
    const auto parts = partition_axis(21, 4, 0.5, partition::balanced);
    CHECK(is_partition(parts, 21, 3));
    CHECK(largest(parts) == 10);
}

TEST_CASE("both partitions cover every axis, and balanced is never the larger") {
    bool valid = true;
    bool never_larger = true;
    index_t smaller = 0;
    for (index_t patches = 1; patches <= 64; ++patches) {
        for (int parts = 1; parts <= 16; ++parts) {
            for (int quarter = 0; quarter <= 4 * (parts - 1); ++quarter) {
                const double overlap = quarter / 4.0;
                const index_t width = overlap_patches(patches, parts, overlap);
                const auto paper = partition_axis(patches, parts, overlap, partition::paper);
                const auto balanced = partition_axis(patches, parts, overlap, partition::balanced);
                valid = valid && is_partition(paper, patches, width) &&
                        is_partition(balanced, patches, width);
                never_larger = never_larger && largest(balanced) <= largest(paper);
                smaller += largest(balanced) < largest(paper) ? 1 : 0;
            }
        }
    }
    CHECK(valid);
    CHECK(never_larger);
    CHECK(smaller > 1000);
}

TEST_CASE("balanced reaches the optimum that a search over all partitions finds") {
    for (index_t patches = 1; patches <= 12; ++patches) {
        for (int quarter = 0; quarter <= 8; ++quarter) {
            const double overlap = quarter / 4.0;
            const index_t width = overlap_patches(patches, 3, overlap);
            index_t best = patches;
            for (index_t a = 0; a <= patches; ++a) {
                for (index_t b = a; b <= patches; ++b) {
                    index_t worst = 0;
                    for (const auto& [first, last] :
                         {std::pair(index_t{0}, a), std::pair(a, b), std::pair(b, patches)}) {
                        if (first == last) continue;
                        worst = std::max(worst, std::min(patches, last + width) -
                                                    std::max<index_t>(0, first - width));
                    }
                    best = std::min(best, worst);
                }
            }
            CHECK(largest(partition_axis(patches, 3, overlap, partition::balanced)) == best);
        }
    }
}

TEST_CASE("what cannot be cut is refused with the range that would do") {
    CHECK_THROWS_WITH(partition_axis(8, 4, 3.25, partition::paper), ContainsSubstring("0 to 3"));
    CHECK_THROWS_AS(partition_axis(8, 4, -0.1, partition::paper), usage_error);
    CHECK_THROWS_AS(
        partition_axis(8, 4, std::numeric_limits<double>::quiet_NaN(), partition::balanced),
        usage_error);
    CHECK_THROWS_AS(partition_axis(0, 4, 0.5, partition::paper), usage_error);
    CHECK_THROWS_AS(partition_axis(8, 0, 0.5, partition::paper), usage_error);
}

// SPDX-License-Identifier: Apache-2.0
// Axes that are joined, items that are located and blocks that a loop is cut into.
#include <cuda/detail/loop_shape.hpp>
#include <support/catch.hpp>

#include <random>
#include <set>
#include <vector>

using namespace latpar;
using namespace latpar::cuda::detail;

namespace {

using numbers = std::array<index_t, 5>;

/// Every position's offsets into each operand.
std::multiset<std::vector<index_t>> offsets_of(const numbers& extents,
                                               const std::vector<numbers>& strides) {
    std::multiset<std::vector<index_t>> out;
    numbers at{};
    for (at[0] = 0; at[0] < extents[0]; ++at[0])
        for (at[1] = 0; at[1] < extents[1]; ++at[1])
            for (at[2] = 0; at[2] < extents[2]; ++at[2])
                for (at[3] = 0; at[3] < extents[3]; ++at[3])
                    for (at[4] = 0; at[4] < extents[4]; ++at[4]) {
                        std::vector<index_t> offsets;
                        for (const numbers& own : strides) {
                            index_t offset = 0;
                            for (std::size_t d = 0; d < 5; ++d) offset += at[d] * own[d];
                            offsets.push_back(offset);
                        }
                        out.insert(offsets);
                    }
    return out;
}

/// The same by way of the items of the joined loop.
std::multiset<std::vector<index_t>> item_offsets(const joined_axes& axes,
                                                 const std::vector<numbers>& strides,
                                                 index_t count) {
    std::multiset<std::vector<index_t>> out;
    const loop_shape shape = shape_of(axes, count);
    for (std::uint32_t item = 0; item < shape.items; ++item) {
        const item_place at = locate(shape, item);
        for (index_t e = at.in_row * count;
             e < std::min<index_t>((at.in_row + 1) * count, shape.row_elements); ++e) {
            std::vector<index_t> offsets;
            for (const numbers& own : strides) {
                index_t offset = e * own[0];
                for (int d = 0; d < shape.outer_axes; ++d) {
                    offset += at.outer[d] * own[static_cast<std::size_t>(d) + 1];
                }
                offsets.push_back(offset);
            }
            out.insert(offsets);
        }
    }
    return out;
}

}  // namespace

TEST_CASE("a dense tensor is one axis, a box of it two or three") {
    const numbers whole{1, 16, 21, 60, 104};
    const auto joined = [&](const numbers& extents, std::optional<std::size_t> keep = {}) {
        std::vector<numbers> strides{dense_strides(extents), dense_strides(whole)};
        return join_axes(extents, strides, keep);
    };
    CHECK(joined(whole).depth == 1);
    CHECK(joined(whole).extents[0] == 16 * 21 * 60 * 104);
    const joined_axes along_t = joined({1, 16, 7, 60, 104});
    CHECK(along_t.depth == 2);
    CHECK(along_t.extents[0] == 7 * 60 * 104);
    const joined_axes along_h = joined({1, 16, 21, 30, 104});
    CHECK(along_h.depth == 2);
    CHECK(along_h.extents[0] == 30 * 104);
    const joined_axes along_w = joined({1, 16, 21, 60, 52});
    CHECK(along_w.depth == 2);
    CHECK(along_w.extents == numbers{52, 16 * 21 * 60, 1, 1, 1});
    CHECK(joined({1, 16, 7, 30, 52}).depth == 4);
    // What is kept stays an axis, of one position too.
    const joined_axes kept = joined(whole, 3);
    CHECK(kept.depth == 3);
    CHECK(kept.kept == 1);
    CHECK(kept.extents == numbers{104, 60, 16 * 21, 1, 1});
    CHECK(joined({1, 16, 21, 1, 104}, 3).extents[joined({1, 16, 21, 1, 104}, 3).kept] == 1);
    CHECK(joined({1, 1, 1, 1, 1}).depth == 1);
}

TEST_CASE("joined axes visit the positions that the five do") {
    // All small extents and orders of axes in memory, with and without gaps.
    index_t wrong = 0;
    std::mt19937 generator(2);
    std::array<std::size_t, 5> order{0, 1, 2, 3, 4};
    do {
        for (int trial = 0; trial < 40; ++trial) {
            numbers extents{};
            for (index_t& extent : extents) extent = 1 + static_cast<index_t>(generator() % 4);
            std::vector<numbers> strides(1 + generator() % 3);
            for (numbers& own : strides) {
                // The first has that order, the others one of their own as often.
                auto its_order = order;
                if (&own != strides.data() && generator() % 2) {
                    std::shuffle(its_order.begin(), its_order.end(), generator);
                }
                index_t next = 1;
                for (const std::size_t d : its_order) {
                    own[d] = generator() % 9 == 0 ? -next : next;
                    next *= extents[d] + static_cast<index_t>(generator() % 3 == 0);
                }
            }
            const auto expected = offsets_of(extents, strides);
            const std::optional<std::size_t> keep =
                generator() % 2 ? std::optional<std::size_t>(generator() % 5) : std::nullopt;
            const joined_axes axes = join_axes(extents, strides, keep);
            if (keep) wrong += axes.extents[axes.kept] != extents[*keep];
            for (const index_t count : {1, 4, 8}) {
                wrong += item_offsets(axes, strides, count) != expected;
            }
        }
    } while (std::next_permutation(order.begin(), order.end()));
    CHECK(wrong == 0);
}

TEST_CASE("blocks cover a loop once and keep to the limit") {
    index_t wrong = 0;
    for (const index_t limit : {1, 5, 64, 100, 1000}) {
        for (const numbers& extents :
             {numbers{1, 2, 3, 4, 5}, numbers{2, 1, 1, 130, 3}, numbers{1, 1, 1, 1, 999}}) {
            std::multiset<std::vector<index_t>> seen;
            for_each_block(extents, limit, [&](const numbers& origin, const numbers& part) {
                index_t positions = 1;
                for (const index_t extent : part) positions *= extent;
                wrong += positions > limit;
                index_t begin = 0;
                for (std::size_t d = 0; d < 5; ++d) begin += origin[d] * dense_strides(extents)[d];
                for (const auto& offsets : offsets_of(part, {dense_strides(extents)})) {
                    seen.insert({begin + offsets[0]});
                }
            });
            wrong += seen != offsets_of(extents, {dense_strides(extents)});
        }
    }
    CHECK(wrong == 0);
    int calls = 0;
    for_each_block(numbers{1, 2, 0, 4, 5}, 10, [&](const numbers&, const numbers&) { ++calls; });
    CHECK(calls == 0);
}

TEST_CASE("accesses are as wide as the address and the steps allow") {
    const auto width = [](std::uintptr_t address, const numbers& strides, index_t size, int count) {
        return access_width(operand_of(reinterpret_cast<const std::byte*>(address), strides, size),
                            size, count);
    };
    CHECK(width(4096, {1, 104, 6240, 0, 0}, 4, 4) == 4);
    CHECK(width(4096, {1, 104, 6240, 0, 0}, 2, 8) == 8);
    CHECK(width(4096, {1, 102, 6240, 0, 0}, 4, 4) == 2);
    CHECK(width(4096, {1, 101, 6240, 0, 0}, 4, 4) == 1);
    CHECK(width(4096, {1, 104, 6242, 0, 0}, 2, 8) == 2);
    CHECK(width(4100, {1, 104, 0, 0, 0}, 4, 4) == 1);
    CHECK(width(4104, {1, 104, 0, 0, 0}, 2, 8) == 4);
    CHECK(width(4096, {1, -104, 0, 0, 0}, 4, 4) == 4);
    CHECK(width(4096, {2, 104, 0, 0, 0}, 4, 4) == 1);
    CHECK(width(4096, {0, 0, 0, 0, 0}, 4, 4) == 1);
}

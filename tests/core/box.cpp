// SPDX-License-Identifier: Apache-2.0
// Tests of core/box.hpp: checked against sets of positions, exhaustively for small boxes.
#include <latpar/core/box.hpp>

#include <support/catch.hpp>

#include <set>
#include <sstream>
#include <vector>

using namespace latpar;

namespace {

/// Every interval [begin, begin + length) with begin in [-1, 2] and length in [0, 2].
std::vector<std::pair<index_t, index_t>> intervals() {
    std::vector<std::pair<index_t, index_t>> out;
    for (index_t begin = -1; begin <= 2; ++begin) {
        for (index_t length = 0; length <= 2; ++length) out.emplace_back(begin, length);
    }
    return out;
}

std::vector<box> small_boxes() {
    std::vector<box> out;
    for (const auto& [t, nt] : intervals()) {
        for (const auto& [h, nh] : intervals()) out.push_back({{t, h, 1}, {nt, nh, 2}});
    }
    return out;
}

std::set<extents3> positions(const box& b) {
    std::set<extents3> out;
    for (index_t t = b.begin(axis::t); t < b.end(axis::t); ++t) {
        for (index_t h = b.begin(axis::h); h < b.end(axis::h); ++h) {
            for (index_t w = b.begin(axis::w); w < b.end(axis::w); ++w) out.insert({t, h, w});
        }
    }
    return out;
}

}  // namespace

TEST_CASE("axes have an index and a name") {
    CHECK(index_of(axis::t) == 0);
    CHECK(index_of(axis::w) == 2);
    std::string names;
    for (const axis a : all_axes) names += name_of(a);
    CHECK(names == "THW");
}

TEST_CASE("a box counts its positions") {
    constexpr box b{{1, 2, 3}, {4, 5, 6}};
    static_assert(b.volume() == 120 && !b.empty());
    static_assert(b.begin(axis::h) == 2 && b.end(axis::h) == 7);
    static_assert(box{}.empty() && box{{9, 9, 9}, {4, 0, 6}}.empty());
    static_assert(box_of({4, 5, 6}) == box{{0, 0, 0}, {4, 5, 6}});
    // Beyond 32 bits.
    static_assert(box_of({4096, 4096, 4096}).volume() == 68'719'476'736);
    for (const box& each : small_boxes()) {
        REQUIRE(static_cast<std::size_t>(each.volume()) == positions(each).size());
    }
}

TEST_CASE("intersect and contains agree with sets of positions") {
    for (const box& a : small_boxes()) {
        const auto in_a = positions(a);
        for (const box& b : small_boxes()) {
            const auto in_b = positions(b);
            std::set<extents3> both;
            for (const auto& at : in_a) {
                if (in_b.contains(at)) both.insert(at);
            }
            const box found = intersect(a, b);
            CAPTURE(a, b, found);
            REQUIRE(positions(found) == both);
            if (both.empty()) REQUIRE(found == box{});
            REQUIRE(found == intersect(b, a));
            REQUIRE(contains(a, b) == (both == in_b));
        }
    }
}

TEST_CASE("slab replaces one axis only") {
    const box whole{{1, 2, 3}, {4, 5, 6}};
    CHECK(slab(whole, axis::t, 2, 4) == box{{2, 2, 3}, {2, 5, 6}});
    CHECK(slab(whole, axis::h, 2, 2).empty());
    CHECK(slab(whole, axis::w, 0, 9) == box{{1, 2, 0}, {4, 5, 9}});
}

TEST_CASE("relative_to counts from another origin") {
    CHECK(relative_to({{5, 6, 7}, {1, 2, 3}}, {4, 6, 9}) == box{{1, 0, -2}, {1, 2, 3}});
}

TEST_CASE("a box is printed as its ranges") {
    std::ostringstream out;
    out << box{{1, 2, 3}, {4, 5, 6}};
    CHECK(out.str() == "[1,5)x[2,7)x[3,9)");
}

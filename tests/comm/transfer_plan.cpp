// SPDX-License-Identifier: Apache-2.0
// Boxes subtracted and moved, against a plain count of positions.
#include <latpar/comm/transfer_plan.hpp>
#include <latpar/core/error.hpp>

#include <support/catch.hpp>

#include <random>

using namespace latpar;

namespace {

constexpr extents3 world{4, 5, 6};

box draw_box(std::mt19937& random) {
    box out;
    for (std::size_t i = 0; i < 3; ++i) {
        std::uniform_int_distribution<index_t> any(0, world[i]);
        const index_t a = any(random);
        const index_t b = any(random);
        out.origin[i] = std::min(a, b);
        out.extent[i] = std::max(a, b) - std::min(a, b);
    }
    return out;
}

/// How often each position of the world lies in one of the boxes.
std::vector<int> counts(const std::vector<box>& boxes) {
    std::vector<int> out(static_cast<std::size_t>(volume_of(world)), 0);
    for (const box& b : boxes) {
        for (index_t t = b.begin(axis::t); t < b.end(axis::t); ++t) {
            for (index_t h = b.begin(axis::h); h < b.end(axis::h); ++h) {
                for (index_t w = b.begin(axis::w); w < b.end(axis::w); ++w) {
                    ++out[static_cast<std::size_t>((t * world[1] + h) * world[2] + w)];
                }
            }
        }
    }
    return out;
}

}  // namespace

TEST_CASE("subtract leaves exactly the rest, once") {
    std::mt19937 random(1);
    for (int trial = 0; trial < 500; ++trial) {
        const box whole = draw_box(random);
        const box hole = draw_box(random);
        const auto rest = counts(subtract(whole, hole));
        const auto inside = counts({whole});
        const auto cut = counts({intersect(whole, hole)});
        for (std::size_t i = 0; i < rest.size(); ++i) REQUIRE(rest[i] == inside[i] - cut[i]);
    }
}

TEST_CASE("a relayout brings each rank what it lacks, once, from ranks that hold it") {
    std::mt19937 random(2);
    for (int trial = 0; trial < 200; ++trial) {
        std::vector<box> held{draw_box(random), draw_box(random), box_of(world), draw_box(random)};
        std::vector<box> wanted{draw_box(random), draw_box(random), draw_box(random), {}};
        const auto transfers = plan_relayout(held, wanted);
        for (std::size_t rank = 0; rank < held.size(); ++rank) {
            std::vector<box> arriving;
            for (const transfer& t : transfers) {
                REQUIRE(t.from != t.to);
                REQUIRE(contains(held[static_cast<std::size_t>(t.from)], t.region));
                if (t.to == static_cast<int>(rank)) arriving.push_back(t.region);
            }
            const auto got = counts(arriving);
            const auto want = counts({wanted[rank]});
            const auto kept = counts({intersect(wanted[rank], held[rank])});
            for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == want[i] - kept[i]);
        }
    }
}

TEST_CASE("known relayouts") {
    const box whole = box_of({4, 1, 1});
    const std::vector<box> halves{slab(whole, axis::t, 0, 2), slab(whole, axis::t, 2, 4)};
    const std::vector<box> everywhere{whole, whole};
    const std::vector<box> central{whole, {}};
    using list = std::vector<transfer>;
    CHECK(plan_relayout(halves, everywhere) == list{{1, 0, halves[1]}, {0, 1, halves[0]}});
    CHECK(plan_relayout(halves, central) == list{{1, 0, halves[1]}});
    CHECK(plan_relayout(central, halves) == list{{0, 1, halves[1]}});
    CHECK(plan_relayout(everywhere, halves).empty());
}

TEST_CASE("a position that nobody holds is refused") {
    const box whole = box_of({4, 1, 1});
    const std::vector<box> held{slab(whole, axis::t, 0, 2), {}};
    const std::vector<box> wanted{whole, {}};
    CHECK_THROWS_WITH(plan_relayout(held, wanted), ContainsSubstring("rank 0 needs"));
    CHECK_THROWS_AS(plan_relayout(held, std::vector<box>{whole}), usage_error);
}

TEST_CASE("bytes and buffers of a phase") {
    const box a = box_of({1, 2, 3});
    const transfer_phase phase{"p", 16, dtype::bf16, {{0, 1, a}, {0, 2, a}, {1, 0, a}, {0, 0, a}}};
    CHECK(phase.bytes_of(phase.transfers[0]) == 192);
    CHECK(phase.bytes() == 3 * 192);
    CHECK(phase.bytes_sent_by(0) == 2 * 192);
    CHECK(phase.bytes_received_by(0) == 192);
    // The same box for several ranks is packed once.
    CHECK(phase.buffer_bytes(0) == 192 + 192 + 192);
    CHECK(phase.buffer_bytes(1) == 2 * 192);
}

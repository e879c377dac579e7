// SPDX-License-Identifier: Apache-2.0
// Ulysses, ring and USP on thread ranks: against attention on one rank, against their plans.
#include <latpar/comm/mesh.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/layer/forward_plan.hpp>

#include <support/attention_case.hpp>
#include <support/catch.hpp>
#include <support/direct_threads.hpp>
#include <support/expect.hpp>
#include <support/in_order_communicator.hpp>
#include <support/messages_of.hpp>
#include <support/recorded.hpp>

#include <cmath>
#include <string>

using namespace latpar;
using layer::attention_shape;
using layer::token_sequence;

namespace {

/// Attention that notes what it is called with.
struct watched_attention {
    std::vector<std::array<index_t, 3>>* keys = nullptr;

    void operator()(layer::const_heads_view q, layer::const_heads_view k, layer::const_heads_view v,
                    layer::heads_view out, layer::lse_view lse, stream_ref stream) const {
        latpar::detail::require(k.extents[0] > 0, "called without a key");
        if (keys) keys->push_back(k.extents);
        layer::reference_attention{}(q, k, v, out, lse, stream);
    }
};

enum class kind { ulysses, ring, usp };

/// Runs a case on ulysses * ring thread ranks, whose communicators `wrap` makes.
template <class Wrap>
std::vector<attention_report> on_ranks(const attention_case& c, kind which, int ulysses, int ring,
                                       bool strided, const Wrap& wrap) {
    const int ranks = ulysses * ring;
    std::vector<attention_report> out(static_cast<std::size_t>(ranks));
    thread_team(ranks).run([&](thread_communicator& world) {
        metered comm(wrap(world.duplicate()));
        using comm_type = decltype(comm);
        attention_report& mine = out[static_cast<std::size_t>(world.rank())];
        counting_resource memory;
        const memory_source source{&memory, memory_space::host};
        const auto run = [&](auto&& policy) {
            mine.taken_bytes = memory.bytes_in_use();
            const index_t before = memory.allocations();
            mine.out = attend_on_rank(policy, c, world.rank(), strided);
            mine.sent_and_received = comm.account().total();
            // Again, on used memory.
            EXPECT(attend_on_rank(policy, c, world.rank(), strided) == mine.out);
            mine.late_allocations = memory.allocations() - before;
            if constexpr (requires { comm.inner().meets(); }) {
                // Three times a call, where there is anybody to meet.
                if (which == kind::ulysses) EXPECT(comm.inner().meets() == (ranks > 1 ? 6 : 0));
            }
        };
        if (which == kind::ulysses) {
            run(layer::ulysses(watched_attention{}, comm,
                               layer::plan_ulysses(c.shape, c.sequence, ranks), kernel::host{},
                               source));
        } else if (which == kind::ring) {
            run(layer::ring(watched_attention{}, comm, layer::plan_ring(c.shape, c.sequence, ranks),
                            kernel::host{}, source));
        } else {
            mesh<comm_type> axes(comm, {{"ring", ring}, {"ulysses", ulysses}});
            run(layer::usp(watched_attention{}, axes.axis("ulysses"), axes.axis("ring"),
                           layer::plan_usp(c.shape, c.sequence, ulysses, ring), kernel::host{},
                           source));
        }
    });
    return out;
}

std::vector<attention_report> on_threads(const attention_case& c, kind which, int ulysses, int ring,
                                         bool strided) {
    return on_ranks(c, which, ulysses, ring, strided,
                    [](thread_communicator comm) { return comm; });
}

/// Distance from one rank's result, bytes and memory.
template <class Plan>
void check(const attention_case& c, const Plan& plan, kind which, int ulysses, int ring,
           bool strided) {
    const auto expected = c.expected();
    const auto reports = on_threads(c, which, ulysses, ring, strided);
    // Written to each other's memory or sent in messages, or in order: the same.
    const auto directly = on_ranks(c, which, ulysses, ring, strided, [](thread_communicator comm) {
        return direct_threads(std::move(comm));
    });
    const auto in_order = on_ranks(c, which, ulysses, ring, strided, [](thread_communicator comm) {
        return in_order_communicator<thread_communicator>(std::move(comm));
    });
    index_t bytes = 0;
    for (int rank = 0; rank < ulysses * ring; ++rank) {
        CAPTURE(rank);
        const auto& report = reports[static_cast<std::size_t>(rank)];
        if (which == kind::ulysses) {
            CHECK(report.out == c.rows_of(expected, rank));
        } else {
            CHECK(relative_l2(report.out, c.rows_of(expected, rank)) < 1e-5);
        }
        CHECK(report.sent_and_received.bytes_sent == plan.bytes_sent_by(rank));
        CHECK(report.sent_and_received.bytes_received == plan.bytes_received_by(rank));
        CHECK(report.late_allocations == 0);
        for (const auto* const others : {&directly, &in_order}) {
            const auto& other = (*others)[static_cast<std::size_t>(rank)];
            CHECK(other.out == report.out);
            CHECK(other.sent_and_received == report.sent_and_received);
            CHECK(other.taken_bytes == report.taken_bytes);
        }
        bytes += report.sent_and_received.bytes_sent;
        // Joint tokens have the same output everywhere, to the bit.
        const auto row = static_cast<std::ptrdiff_t>(c.shape.heads * c.shape.head_dim);
        const auto front = row * c.sequence.joint_front;
        const auto back = row * c.sequence.joint_back;
        CHECK(std::equal(report.out.begin(), report.out.begin() + front, reports[0].out.begin()));
        CHECK(std::equal(report.out.end() - back, report.out.end(), reports[0].out.end() - back));
    }
    CHECK(bytes == plan.bytes());
    CHECK(plan.bytes() == plan.smallest_bytes());
}

struct draw {
    std::mt19937 random;
    explicit draw(unsigned seed) : random(seed) {}
    int operator()(int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    }
    attention_shape shape(int least_heads) {
        const int key_heads = (*this)(1, 6);
        int group = (*this)(1, 4);
        while (key_heads * group < least_heads) ++group;
        return {key_heads * group, key_heads, 2 * (*this)(1, 9), dtype::f32};
    }
    token_sequence sequence(int ranks) {
        token_sequence out;
        index_t all = 0;
        for (int r = 0; r < ranks; ++r) all += out.tokens.emplace_back((*this)(0, 9));
        if ((*this)(0, 1)) all += out.joint_front = (*this)(0, 5);
        if ((*this)(0, 1)) all += out.joint_back = (*this)(0, 5);
        if ((*this)(0, 1)) {
            for (index_t i = 0; i < all; ++i) out.is_key.push_back((*this)(0, 2) > 0);
        }
        if ((*this)(0, 1)) {
            for (int r = 0; r < ranks; ++r) {
                out.key_only.push_back((*this)(0, 2) > 0 ? (*this)(1, 7) : 0);
            }
        }
        return out;
    }
};

}  // namespace

TEST_CASE("Ulysses over drawn shapes equals attention on one rank, with the fewest bytes") {
    draw next(1);
    for (int trial = 0; trial < 250; ++trial) {
        const int ranks = next(1, 8);
        const attention_case c(next.shape(ranks), next.sequence(ranks), next.random);
        CAPTURE(trial, ranks, c.shape.heads, c.shape.key_heads, c.shape.head_dim);
        check(c, layer::plan_ulysses(c.shape, c.sequence, ranks), kind::ulysses, ranks, 1,
              next(0, 1));
    }
}

TEST_CASE("a ring over drawn shapes equals attention on one rank, with the fewest bytes") {
    draw next(2);
    for (int trial = 0; trial < 250; ++trial) {
        const int ranks = next(1, 8);
        const attention_case c(next.shape(1), next.sequence(ranks), next.random);
        CAPTURE(trial, ranks, c.shape.heads, c.shape.key_heads, c.shape.head_dim);
        check(c, layer::plan_ring(c.shape, c.sequence, ranks), kind::ring, 1, ranks, next(0, 1));
    }
}

TEST_CASE("USP over drawn shapes and meshes equals attention on one rank") {
    draw next(3);
    for (int trial = 0; trial < 250; ++trial) {
        const int ulysses = next(1, 4);
        const int ring = next(1, 8 / ulysses);
        const attention_case c(next.shape(ulysses), next.sequence(ulysses * ring), next.random);
        CAPTURE(trial, ulysses, ring, c.shape.heads, c.shape.key_heads, c.shape.head_dim);
        check(c, layer::plan_usp(c.shape, c.sequence, ulysses, ring), kind::usp, ulysses, ring,
              next(0, 1));
    }
}

TEST_CASE("heads that do not divide: 12 on 8, 5 on 4, 40 with 8 key heads on 7") {
    draw next(4);
    for (const auto& [heads, key_heads, ranks] :
         {std::tuple(12, 12, 8), std::tuple(5, 5, 4), std::tuple(40, 8, 7)}) {
        const attention_shape shape{heads, key_heads, 6, dtype::f32};
        const attention_case c(shape, {layer::even_tokens(37, ranks), 3, 2, {}}, next.random);
        const auto plan = layer::plan_ulysses(shape, c.sequence, ranks);
        for (const layer::head_share& share : plan.shares) {
            CHECK(share.count >= heads / ranks);
            CHECK(share.count <= (heads + ranks - 1) / ranks);
        }
        check(c, plan, kind::ulysses, ranks, 1, false);
    }
}

TEST_CASE("bytes, counted by hand") {
    // Rows of one head are 32 bytes.
    const attention_shape shape{4, 2, 8, dtype::f32};
    draw next(10);
    token_sequence sequence{{3, 5}, 1, 1, std::vector<bool>(10, true)};
    sequence.is_key[6] = false;  // of rank 1
    const attention_case c(shape, sequence, next.random);

    // 3 queries and 5 with 2 heads, 3 and 4 keys with 1, the output of 7 and 5 rows with 2.
    const auto ulysses = layer::plan_ulysses(shape, sequence, 2);
    CHECK(ulysses.bytes_sent_by(0) == (3 * 2 + 2 * 3 + 7 * 2) * 32);
    CHECK(ulysses.bytes_sent_by(1) == (5 * 2 + 2 * 4 + 5 * 2) * 32);
    CHECK(ulysses.bytes_received_by(0) == 896);
    CHECK(ulysses.bytes_received_by(1) == 832);
    CHECK(ulysses.bytes() == 1728);
    CHECK(ulysses.smallest_bytes() == 1728);
    check(c, ulysses, kind::ulysses, 2, 1, false);

    // 3 and 4 keys with 2 heads, the output of one joint token with 4.
    const auto ring = layer::plan_ring(shape, sequence, 2);
    CHECK(ring.bytes_sent_by(0) == (2 * 3 * 2 + 4) * 32);
    CHECK(ring.bytes_sent_by(1) == (2 * 4 * 2 + 4) * 32);
    CHECK(ring.bytes_received_by(0) == 640);
    CHECK(ring.bytes() == 1152);
    CHECK(ring.smallest_bytes() == 1152);
    check(c, ring, kind::ring, 1, 2, true);

    // Rows of ranks with 1 + 2 and 3 + 4 tokens; two rings, each with 3 and 7 keys of one head.
    const attention_case on_four(shape, {{1, 2, 3, 4}}, next.random);
    const auto usp = layer::plan_usp(shape, on_four.sequence, 2, 2);
    CHECK(usp.bytes_sent_by(0) == (1 * 2 + 2 * 1 + 2 * 2 + 2 * 3) * 32);
    CHECK(usp.bytes_sent_by(3) == (4 * 2 + 2 * 4 + 3 * 2 + 2 * 7) * 32);
    CHECK(usp.ulysses_bytes() == 1920);
    CHECK(usp.ring_bytes() == 1280);
    CHECK(usp.smallest_bytes() == 3200);
    check(on_four, usp, kind::usp, 2, 2, false);

    // Two layers over 1 x 2 x 3 tokens and 1 joint one, an output of 5 numbers in bf16.
    const layer::transformer_shape model{shape, 2, {1, 2, 2}, 5, dtype::bf16, 1, 0};
    const auto forward = layer::plan_forward(model, {1, 4, 6}, 1, 2);
    CHECK(forward.attention.sequence == token_sequence{{3, 3}, 1, 0, {}});
    CHECK(forward.bytes("ulysses") == 0);
    CHECK(forward.bytes_sent_by(0, "ring") == 2 * (2 * 3 * 2) * 32 + 3 * 5 * 2);
    CHECK(forward.bytes_sent_by(1, "ring") == 2 * (2 * 3 * 2 + 4) * 32 + 3 * 5 * 2);
    CHECK(forward.workspace_bytes(1) == forward.attention.workspace_bytes(1));
}

TEST_CASE("key-only rows are keys for all, and queries for nobody") {
    // Queries of zeros weigh all keys alike: the output is the mean of the values.
    const attention_shape shape{1, 1, 2, dtype::f32};
    token_sequence sequence{{2, 0, 1}, 1, 1, {true, true, false, true, true}, {0, 2, 1}};
    std::mt19937 random(13);
    attention_case c(shape, sequence, random);
    std::ranges::fill(c.q, 0.0f);
    // Of the joint token in front, tokens 0, 1 (no key) and 2, of ranks 1, 1 and 2, of that behind.
    c.v = {1, 10, 2, 20, 1000, 1000, 3, 30, 4, 40, 5, 50, 6, 60, 7, 70};
    CHECK(c.key_rows_of(c.v, 0) == std::vector<float>{1, 10, 2, 20, 1000, 1000, 7, 70});
    CHECK(c.key_rows_of(c.v, 1) == std::vector<float>{1, 10, 4, 40, 5, 50, 7, 70});
    CHECK(c.key_rows_of(c.v, 2) == std::vector<float>{1, 10, 3, 30, 6, 60, 7, 70});
    for (const auto& report : on_threads(c, kind::ring, 1, 3, true)) {
        for (std::size_t i = 0; i < report.out.size(); i += 2) {
            CHECK(std::abs(report.out[i] - 4) < 1e-6f);
            CHECK(std::abs(report.out[i + 1] - 40) < 1e-5f);
        }
    }
    // One rank passes them as its attention takes them.
    const attention_case alone({4, 2, 8, dtype::f32}, {{5}, 1, 2, {}, {3}}, random);
    CHECK(on_threads(alone, kind::ulysses, 1, 1, true)[0].out == alone.expected());
    CHECK(on_threads(alone, kind::ring, 1, 1, true)[0].out == alone.expected());
    CHECK(on_threads(alone, kind::usp, 1, 1, true)[0].out == alone.expected());

    // All at once: a rank with nothing else, joint tokens, a mask, heads that cut a group.
    token_sequence four{{3, 0, 0, 5}, 2, 1, std::vector<bool>(11, true), {0, 4, 0, 2}};
    four.is_key[1] = four.is_key[3] = four.is_key[9] = false;
    const attention_case mixed({6, 2, 6, dtype::f32}, four, random);
    for (const bool strided : {false, true}) {
        check(mixed, layer::plan_ulysses(mixed.shape, four, 4), kind::ulysses, 4, 1, strided);
        check(mixed, layer::plan_ring(mixed.shape, four, 4), kind::ring, 1, 4, strided);
        check(mixed, layer::plan_usp(mixed.shape, four, 2, 2), kind::usp, 2, 2, strided);
        check(mixed, layer::plan_usp(mixed.shape, four, 4, 1), kind::usp, 4, 1, strided);
        check(mixed, layer::plan_usp(mixed.shape, four, 1, 4), kind::usp, 1, 4, strided);
    }
    // No token of the whole window is a key.
    const attention_case lent({4, 2, 6, dtype::f32},
                              {{2, 1}, 0, 0, std::vector<bool>(3, false), {0, 3}}, random);
    check(lent, layer::plan_ulysses(lent.shape, lent.sequence, 2), kind::ulysses, 2, 1, false);
    check(lent, layer::plan_ring(lent.shape, lent.sequence, 2), kind::ring, 1, 2, false);
}

TEST_CASE("bytes and memory of key-only rows, counted by hand") {
    // Rows of one head are 32 bytes.
    const attention_shape shape{4, 2, 8, dtype::f32, true};
    const token_sequence sequence{{3, 5}, 1, 0, {}, {2, 0}};
    // 3 and 5 queries with 2 heads, 3 + 2 and 5 keys with 1, the output of 6 and 4 rows with 2.
    const auto ulysses = layer::plan_ulysses(shape, sequence, 2);
    CHECK(ulysses.rows_of(0) == 4);
    CHECK(ulysses.key_rows_of(0) == 6);
    CHECK(ulysses.all_tokens() == 9);
    CHECK(ulysses.all_keys() == 11);
    CHECK(ulysses.bytes_sent_by(0) == (3 * 2 + 2 * 5 + 6 * 2) * 32);
    CHECK(ulysses.bytes_sent_by(1) == (5 * 2 + 2 * 5 + 4 * 2) * 32);
    CHECK(ulysses.smallest_bytes() == ulysses.bytes());
    // Queries and output of 9 tokens with 2 heads: 576 bytes each; keys and values of 11 with one:
    // 352, 384 aligned; the message of 6 + 10 rows.
    CHECK(ulysses.workspace_bytes(0) == 2 * 576 + 2 * 384 + 16 * 32);
    // 5 keys each with 2 heads; the joint token's query is rank 1's.
    const auto ring = layer::plan_ring(shape, sequence, 2);
    CHECK(ring.key_rows_of(0) == 6);
    CHECK(ring.most_keys() == 5);
    CHECK(ring.bytes_sent_by(0) == 2 * 5 * 2 * 32);
    CHECK(ring.bytes_sent_by(1) == (2 * 5 * 2 + 4) * 32);
    CHECK(ring.smallest_bytes() == ring.bytes());
    // Two layers over 1 x 2 x 3 tokens.
    const layer::transformer_shape model{shape, 2, {1, 2, 2}};
    const auto forward = layer::plan_forward(model, {1, 4, 6}, 1, 2, {1, 3});
    CHECK(forward.attention.sequence == token_sequence{{3, 3}, 0, 0, {}, {1, 3}});
    CHECK(forward.bytes_sent_by(0, "ring") == 2 * (2 * 4 * 2) * 32);
    CHECK(forward.bytes_sent_by(1, "ring") == 2 * (2 * 6 * 2) * 32);
}

TEST_CASE("each rank's part of some rows") {
    const std::vector<index_t> tokens{3, 0, 4, 2};
    CHECK(layer::tokens_within(tokens, {0, 9}) == tokens);
    CHECK(layer::tokens_within(tokens, {2, 5}) == std::vector<index_t>{1, 0, 2, 0});
    CHECK(layer::tokens_within(tokens, {7, 9}) == std::vector<index_t>{0, 0, 0, 2});
    CHECK(layer::tokens_within(tokens, {4, 4}) == std::vector<index_t>(4, 0));
}

TEST_CASE("a mask of keys alone is none, and every plan has a text of its own") {
    const attention_shape shape{4, 2, 8, dtype::f32};
    const token_sequence plain{{2, 3}, 1, 0, {}};
    const token_sequence full{{2, 3}, 1, 0, std::vector<bool>(6, true)};
    CHECK(layer::plan_ring(shape, full, 2).fingerprint() ==
          layer::plan_ring(shape, plain, 2).fingerprint());
    CHECK_FALSE(layer::plan_ring(shape, full, 2).is_masked());
    CHECK_FALSE(layer::plan_ulysses(shape, full, 2).is_masked());
    CHECK(layer::plan_usp(shape, full, 2, 1).sequence == plain);
    const token_sequence none{{2, 3}, 1, 0, {}, {0, 0}};
    CHECK(layer::plan_usp(shape, none, 2, 1).sequence == plain);
    const auto texts = [&](std::vector<index_t> key_only) {
        const token_sequence lent{{2, 3}, 1, 0, {}, std::move(key_only)};
        return std::array{layer::plan_ulysses(shape, lent, 2).fingerprint(),
                          layer::plan_ring(shape, lent, 2).fingerprint(),
                          layer::plan_usp(shape, lent, 2, 1).fingerprint(),
                          layer::plan_usp(shape, lent, 1, 2).fingerprint()};
    };
    CHECK(texts({0, 0}) == texts({}));
    for (std::size_t i = 0; i < 4; ++i) {
        CHECK(texts({0, 1})[i] != texts({})[i]);
        CHECK(texts({0, 1})[i] != texts({1, 0})[i]);
    }
    auto dense = shape;
    dense.keys_are_dense = true;
    CHECK(layer::plan_ring(shape, plain, 2).fingerprint() !=
          layer::plan_ring(dense, plain, 2).fingerprint());
    // Rings of rows with 2 keys each, but of different ranks' tokens: 1 + 1 and 2 + 0.
    const auto inner = [&](std::vector<bool> mask) {
        return layer::plan_usp(shape, {{2, 2}, 0, 0, std::move(mask)}, 1, 2).rings[0].fingerprint();
    };
    CHECK(inner({true, false, true, false}) != inner({true, true, false, false}));
}

TEST_CASE("a rank knows its number and its tokens on a mesh") {
    const auto plan = layer::plan_usp({4, 2, 8, dtype::f32}, {{1, 0, 4, 2, 3, 5}, 7, 2, {}}, 2, 3);
    CHECK(plan.rank_of(1, 2) == 5);
    CHECK(plan.token_range(0) == layer::row_range{0, 1});
    CHECK(plan.token_range(1) == layer::row_range{1, 1});
    CHECK(plan.token_range(plan.rank_of(0, 1)) == layer::row_range{1, 5});
    CHECK(plan.token_range(5) == layer::row_range{10, 15});
}

TEST_CASE("narrow types are merged in float32") {
    draw next(5);
    for (const dtype type : {dtype::bf16, dtype::f16}) {
        const attention_shape shape{4, 2, 8, type};
        const token_sequence sequence{{5, 7, 3, 2}, 2, 1, {}};
        const attention_case c(shape, sequence, next.random);
        // Rounded inputs, and their attention in double precision.
        attention_case rounded = c;
        const auto narrow = [&](const std::vector<float>& values) {
            std::vector<std::byte> out(values.size() * 2);
            visit_floating(type, [&]<class T>() {
                T* to = reinterpret_cast<T*>(out.data());
                for (std::size_t i = 0; i < values.size(); ++i) to[i] = from_float<T>(values[i]);
            });
            return out;
        };
        const auto widen = [&](const std::vector<std::byte>& values) {
            std::vector<float> out(values.size() / 2);
            visit_floating(type, [&]<class T>() {
                const T* from = reinterpret_cast<const T*>(values.data());
                for (std::size_t i = 0; i < out.size(); ++i) out[i] = to_float(from[i]);
            });
            return out;
        };
        rounded.q = widen(narrow(c.q));
        rounded.k = widen(narrow(c.k));
        rounded.v = widen(narrow(c.v));
        const auto expected = rounded.expected();
        thread_team(4).run([&](thread_communicator& comm) {
            const int rank = comm.rank();
            const index_t rows = sequence.tokens[static_cast<std::size_t>(rank)] + 3;
            auto q = narrow(c.rows_of(c.q, rank));
            auto k = narrow(c.key_rows_of(c.k, rank));
            auto v = narrow(c.key_rows_of(c.v, rank));
            std::vector<std::byte> out(q.size());
            const auto view = [&](std::vector<std::byte>& values, index_t heads) {
                const std::array<index_t, 3> extents{rows, heads, 8};
                return layer::heads_view{values.data(), extents, dense_strides(extents), type,
                                         memory_space::host};
            };
            const double limit = type == dtype::bf16 ? 6e-3 : 8e-4;
            layer::ring ring(layer::reference_attention{}, comm,
                             layer::plan_ring(shape, sequence, 4));
            ring(view(q, 4), view(k, 2), view(v, 2), view(out, 4));
            EXPECT(relative_l2(widen(out), rounded.rows_of(expected, rank)) < limit);
            layer::ulysses ulysses(layer::reference_attention{}, comm,
                                   layer::plan_ulysses(shape, sequence, 4));
            ulysses(view(q, 4), view(k, 2), view(v, 2), view(out, 4));
            EXPECT(relative_l2(widen(out), rounded.rows_of(expected, rank)) < limit / 2);
            mesh<thread_communicator> axes(comm, {{"ring", 2}, {"ulysses", 2}});
            layer::usp usp(layer::reference_attention{}, axes.axis("ulysses"), axes.axis("ring"),
                           layer::plan_usp(shape, sequence, 2, 2));
            std::ranges::fill(out, std::byte{0});
            usp(view(q, 4), view(k, 2), view(v, 2), view(out, 4));
            EXPECT(relative_l2(widen(out), rounded.rows_of(expected, rank)) < limit);
        });
    }
}

TEST_CASE("tokens that are no keys do not travel, and are not attended over") {
    const attention_shape shape{4, 4, 4, dtype::f32};
    token_sequence sequence{{4, 4}, 0, 0, {}};
    const auto all = layer::plan_ulysses(shape, sequence, 2);
    sequence.is_key = {true, false, false, false, true, true, false, false};
    const auto some = layer::plan_ulysses(shape, sequence, 2);
    // Keys and values of 1 and 2 tokens in place of 4 and 4, two heads each way.
    CHECK(all.bytes() - some.bytes() == 2 * (3 + 2) * 2 * 4 * 4);
    std::mt19937 random(6);
    const attention_case c(shape, sequence, random);
    thread_team(2).run([&](thread_communicator& comm) {
        std::vector<std::array<index_t, 3>> keys;
        layer::ulysses policy(watched_attention{&keys}, comm, some);
        static_cast<void>(attend_on_rank(policy, c, comm.rank(), false));
        EXPECT(keys == std::vector<std::array<index_t, 3>>{{3, 2, 4}});
    });
}

TEST_CASE("memory is what the plan says") {
    draw next(7);
    for (int trial = 0; trial < 40; ++trial) {
        const int ulysses = next(1, 3);
        const int ring = next(1, 2);
        const attention_case c(next.shape(ulysses * ring), next.sequence(ulysses * ring),
                               next.random);
        CAPTURE(trial, ulysses, ring);
        const int ranks = ulysses * ring;
        const auto u = layer::plan_ulysses(c.shape, c.sequence, ranks);
        const auto r = layer::plan_ring(c.shape, c.sequence, ranks);
        const auto both = layer::plan_usp(c.shape, c.sequence, ulysses, ring);
        const auto of_u = on_threads(c, kind::ulysses, ranks, 1, false);
        const auto of_r = on_threads(c, kind::ring, 1, ranks, false);
        const auto of_both = on_threads(c, kind::usp, ulysses, ring, false);
        for (int rank = 0; rank < ranks; ++rank) {
            const auto at = static_cast<std::size_t>(rank);
            CHECK(of_u[at].taken_bytes == u.workspace_bytes(rank));
            CHECK(of_r[at].taken_bytes == r.workspace_bytes(rank));
            CHECK(of_both[at].taken_bytes == both.workspace_bytes(rank));
        }
    }
}

TEST_CASE("memory is shared anew only if a rank needs more") {
    thread_team(2).run([](thread_communicator& world) {
        direct_threads comm(world.duplicate());
        const auto peer = 1 - comm.rank();
        layer::detail::arena arena;
        const auto reserve = [&](index_t of_first, index_t of_second) {
            arena.reserve([&](int rank) { return rank == 0 ? of_first : of_second; }, {}, comm);
        };
        reserve(64, 128);
        EXPECT(arena.is_shared() && arena.bytes() == (comm.rank() == 0 ? 64 : 128));
        // Nobody is asked where nobody needs more.
        if (comm.rank() == 0) reserve(64, 100);
        const std::byte* const before = arena.data();
        reserve(10, 256);
        EXPECT(arena.bytes() == (comm.rank() == 0 ? 64 : 256));
        EXPECT(comm.rank() == 1 || arena.data() == before);
        *arena.at(peer, arena.data() + 60) = static_cast<std::byte>(7 + comm.rank());
        comm.meet();
        EXPECT(arena.data()[60] == static_cast<std::byte>(7 + peer));
        comm.meet();
    });
}

TEST_CASE("no more memory is handed out than was planned") {
    layer::detail::arena arena;
    self_communicator alone;
    arena.reserve([](int) { return 128; }, {}, alone);
    static_cast<void>(arena.take(std::array<index_t, 1>{1}, dtype::u8, memory_space::host));
    static_cast<void>(arena.take(std::array<index_t, 1>{64}, dtype::u8, memory_space::host));
    CHECK_THROWS_WITH(arena.take(std::array<index_t, 1>{1}, dtype::u8, memory_space::host),
                      ContainsSubstring("129 bytes of the 128"));
}

TEST_CASE("keys that are promised to be dense need no memory to pack them") {
    draw next(11);
    attention_case c({4, 2, 6, dtype::f32}, {{3, 5, 4}, 1, 0, {}}, next.random);
    const auto packing = layer::plan_ring(c.shape, c.sequence, 3);
    c.shape.keys_are_dense = true;
    const auto dense = layer::plan_ring(c.shape, c.sequence, 3);
    // Keys and values of 6 tokens with 2 heads of 6 numbers: 288 bytes, 320 aligned.
    CHECK(packing.workspace_bytes(1) - dense.workspace_bytes(1) == 2 * 320);
    check(c, dense, kind::ring, 1, 3, false);
    for (const auto& report : on_threads(c, kind::ring, 1, 3, false)) {
        CHECK(report.late_allocations == 0);
    }
    CHECK_THROWS_WITH(on_threads(c, kind::ring, 1, 3, true),
                      ContainsSubstring("planned for dense keys"));
    CHECK_THROWS_WITH(on_threads(c, kind::usp, 1, 3, true),
                      ContainsSubstring("planned for dense keys"));
    // What Ulysses gathers is dense, however it was passed.
    const attention_case four({4, 2, 6, dtype::f32, true}, {{3, 5, 4, 1}, 0, 1, {}}, next.random);
    check(four, layer::plan_usp(four.shape, four.sequence, 2, 2), kind::usp, 2, 2, true);
}

TEST_CASE("a policy goes on with another plan") {
    std::mt19937 random(8);
    const attention_shape shape{4, 2, 4, dtype::f32};
    const attention_case small(shape, {{2, 3}, 0, 0, {}}, random);
    const attention_case large(shape, {{9, 4}, 2, 0, {}}, random);
    const auto on_rank = [&](auto& comm) {
        layer::ulysses ulysses(layer::reference_attention{}, comm,
                               layer::plan_ulysses(shape, small.sequence, 2));
        layer::ring ring(layer::reference_attention{}, comm,
                         layer::plan_ring(shape, small.sequence, 2));
        // Agreed on before any is used; an equal plan keeps its number.
        const int of_ulysses = ulysses.add(layer::plan_ulysses(shape, large.sequence, 2));
        const int of_ring = ring.add(layer::plan_ring(shape, large.sequence, 2));
        EXPECT(of_ulysses == 1 && of_ring == 1);
        EXPECT(ulysses.add(layer::plan_ulysses(shape, small.sequence, 2)) == 0);
        EXPECT(ring.add(layer::plan_ring(shape, large.sequence, 2)) == 1);
        for (const int id : {0, 1, 0}) {
            const attention_case& c = id == 0 ? small : large;
            ulysses.use(id);
            ring.use(id);
            const auto expected = c.rows_of(c.expected(), comm.rank());
            EXPECT(attend_on_rank(ulysses, c, comm.rank(), false) == expected);
            EXPECT(relative_l2(attend_on_rank(ring, c, comm.rank(), true), expected) < 1e-5);
        }
        for (const int id : {-1, 2}) {
            std::string text;
            try {
                ring.use(id);
            } catch (const usage_error& error) {
                text = error.what();
            }
            EXPECT(text.find("use a number that add returned") != std::string::npos);
        }
    };
    thread_team(2).run(on_rank);
    thread_team(2).run([&](thread_communicator& world) {
        direct_threads comm(world.duplicate());
        on_rank(comm);
    });
}

TEST_CASE("USP goes on with another plan on one rank, and takes no memory for it") {
    std::mt19937 random(12);
    const attention_shape shape{4, 2, 4, dtype::f32};
    const attention_case small(shape, {{2, 3, 0, 1}, 0, 0, {}}, random);
    const attention_case large(shape, {{9, 4, 2, 5}, 2, 1, {}}, random);
    thread_team(4).run([&](thread_communicator& world) {
        metered comm(world.duplicate());
        mesh<metered<thread_communicator>> axes(comm, {{"ring", 2}, {"ulysses", 2}});
        counting_resource memory;
        layer::usp usp(layer::reference_attention{}, axes.axis("ulysses"), axes.axis("ring"),
                       layer::plan_usp(shape, small.sequence, 2, 2), kernel::host{},
                       memory_source{&memory, memory_space::host});
        const int other = usp.add(layer::plan_usp(shape, large.sequence, 2, 2));
        EXPECT(memory.bytes_in_use() ==
               layer::plan_usp(shape, large.sequence, 2, 2).workspace_bytes(world.rank()));
        const index_t taken = memory.allocations();
        const auto said = comm.account().control_bytes();
        for (const int id : {0, other, 0, other}) {
            const attention_case& c = id == 0 ? small : large;
            usp.use(id);
            EXPECT(usp.plan().sequence == c.sequence);
            const auto expected = c.rows_of(c.expected(), world.rank());
            EXPECT(relative_l2(attend_on_rank(usp, c, world.rank(), true), expected) < 1e-5);
        }
        EXPECT(memory.allocations() == taken);
        EXPECT(comm.account().control_bytes() == said);
    });
}

TEST_CASE("USP gathers rows of uneven tokens, joint ones not among them") {
    const token_sequence sequence{{2, 3, 0, 1, 4, 2}, 2, 1, {}};
    thread_team(6).run([&](thread_communicator& world) {
        mesh<thread_communicator> axes(world, {{"ring", 2}, {"ulysses", 3}});
        layer::usp usp(layer::reference_attention{}, axes.axis("ulysses"), axes.axis("ring"),
                       layer::plan_usp({3, 3, 4, dtype::f32}, sequence, 3, 2));
        const layer::row_range own = usp.plan().token_range(world.rank());
        std::vector<float> rows(12 * 5, -1);
        for (index_t i = own.begin * 5; i < own.end * 5; ++i) {
            rows[static_cast<std::size_t>(i)] = static_cast<float>(i);
        }
        usp.gather(make_view(rows.data(), std::array<index_t, 2>{12, 5}));
        for (std::size_t i = 0; i < rows.size(); ++i) EXPECT(rows[i] == static_cast<float>(i));
    });
}

TEST_CASE("what cannot be planned is refused with value and remedy") {
    const token_sequence eight{std::vector<index_t>(8, 4), 0, 0, {}};
    CHECK_THROWS_WITH(layer::plan_ulysses({6, 6, 4, dtype::f32}, eight, 8),
                      ContainsSubstring("6 heads cannot be spread on 8 ranks") &&
                          ContainsSubstring("ulysses=4,ring=2"));
    CHECK_THROWS_WITH(layer::plan_ulysses({6, 4, 4, dtype::f32}, eight, 8),
                      ContainsSubstring("4 key heads cannot serve 6"));
    CHECK_THROWS_WITH(layer::plan_ring({6, 6, 4, dtype::f32}, eight, 4),
                      ContainsSubstring("the tokens of 8 ranks were given for 4"));
    CHECK_THROWS_WITH(layer::plan_ring({6, 6, 4, dtype::f32}, {{1, -1}, 0, 0, {}}, 2),
                      ContainsSubstring("rank 1 was given -1 tokens"));
    CHECK_THROWS_WITH(layer::plan_ring({6, 6, 4, dtype::f32}, {{1, 1}, -1, 0, {}}, 2),
                      ContainsSubstring("-1 joint tokens"));
    CHECK_THROWS_WITH(layer::plan_ring({6, 6, 4, dtype::f32}, {{1, 1}, 1, 0, {true}}, 2),
                      ContainsSubstring("1 entries was given for 3"));
    for (const auto& [key_only, text] :
         {std::pair(std::vector<index_t>{1}, "the key-only rows of 1 ranks were given for 2"),
          std::pair(std::vector<index_t>{1, -2}, "rank 1 was given -2 key-only rows")}) {
        const token_sequence lent{{1, 1}, 0, 0, {}, key_only};
        CHECK_THROWS_WITH(layer::plan_ring({6, 6, 4, dtype::f32}, lent, 2),
                          ContainsSubstring(text));
        CHECK_THROWS_WITH(layer::plan_ulysses({6, 6, 4, dtype::f32}, lent, 2),
                          ContainsSubstring(text));
        CHECK_THROWS_WITH(layer::plan_usp({6, 6, 4, dtype::f32}, lent, 1, 2),
                          ContainsSubstring(text));
    }
    CHECK_THROWS_WITH(layer::plan_ring({6, 6, 4, dtype::u8}, eight, 8),
                      ContainsSubstring("use f32, bf16 or f16"));
    CHECK_THROWS_WITH(layer::plan_usp({2, 2, 4, dtype::f32}, eight, 4, 2),
                      ContainsSubstring("2 heads cannot be spread on 4 ranks") &&
                          ContainsSubstring("ulysses=2,ring=4"));
    CHECK_THROWS_WITH(layer::plan_usp({6, 6, 4, dtype::f32}, eight, 0, 8),
                      ContainsSubstring("each must be 1 or more"));
}

TEST_CASE("plans that differ, views that do not fit and an attention that throws stop all ranks") {
    const attention_shape shape{4, 2, 4, dtype::f32};
    std::mt19937 random(9);
    const attention_case c(shape, {{2, 3}, 0, 0, {}}, random);
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             layer::ulysses policy(layer::reference_attention{}, comm,
                                   layer::plan_ulysses(shape, {{2, 3 + comm.rank()}, 0, 0, {}}, 2));
         })) {
        CHECK_THAT(text, ContainsSubstring("the Ulysses plan"));
    }
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             layer::ring policy(layer::reference_attention{}, comm,
                                layer::plan_ring(shape, {{3, 3}, 0, 0, {}}, 2));
             static_cast<void>(attend_on_rank(policy, c, comm.rank(), false));
         })) {
        CHECK_THAT(text, ContainsSubstring("plan for what is passed"));
    }
    // Rows of k and v that were not planned for, and planned ones that do not come.
    const attention_case lent(shape, {{2, 3}, 0, 0, {}, {1, 1}}, random);
    for (const bool is_planned : {false, true}) {
        const attention_case& planned = is_planned ? lent : c;
        const attention_case& passed = is_planned ? c : lent;
        const auto complaint = [&](index_t tokens) {
            return latpar::detail::concat(tokens, " queries, ", tokens + (is_planned ? 1 : 0),
                                          " keys, 4 heads, 2 key heads and head_dim 4 in f32 on "
                                          "host and was called with q [",
                                          tokens, ", 4, 4] in f32 on host, k [",
                                          tokens + (is_planned ? 0 : 1), ", 2, 4] in f32");
        };
        for (const bool in_ring : {false, true}) {
            const auto texts = messages_of(2, [&](thread_communicator& comm) {
                const auto call = [&](auto&& policy) {
                    static_cast<void>(attend_on_rank(policy, passed, comm.rank(), false));
                };
                const layer::reference_attention attend;
                if (in_ring) {
                    call(layer::ring(attend, comm, layer::plan_ring(shape, planned.sequence, 2)));
                } else {
                    call(layer::ulysses(attend, comm,
                                        layer::plan_ulysses(shape, planned.sequence, 2)));
                }
            });
            for (const std::string& text : texts) {
                CHECK_THAT(text,
                           ContainsSubstring(complaint(2)) || ContainsSubstring(complaint(3)));
            }
        }
    }
    for (const bool in_ring : {false, true}) {
        for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
                 const auto failing = [&](auto q, auto k, auto v, auto out, auto lse, auto stream) {
                     if (comm.rank() == 1) throw std::runtime_error("no memory left");
                     layer::reference_attention{}(q, k, v, out, lse, stream);
                 };
                 for (int layers = 0; layers < 3; ++layers) {
                     if (in_ring) {
                         layer::ring policy(failing, comm, layer::plan_ring(shape, c.sequence, 2));
                         static_cast<void>(attend_on_rank(policy, c, comm.rank(), false));
                     } else {
                         layer::ulysses policy(failing, comm,
                                               layer::plan_ulysses(shape, c.sequence, 2));
                         static_cast<void>(attend_on_rank(policy, c, comm.rank(), false));
                     }
                 }
             })) {
            CHECK_THAT(text, ContainsSubstring("no memory left"));
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
// The order of exchanges and attention, and what happens when a rank fails between them.
#include <latpar/comm/mesh.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/step/lockstep.hpp>

#include <support/attention_case.hpp>
#include <support/catch.hpp>
#include <support/direct_threads.hpp>
#include <support/expect.hpp>
#include <support/logged_communicator.hpp>
#include <support/messages_of.hpp>
#include <support/recorded.hpp>

#include <chrono>
#include <cmath>
#include <string>
#include <thread>

using namespace latpar;
using layer::attention_shape;
using layer::token_sequence;

namespace {

using logged = logged_communicator<thread_communicator>;
using calls = std::vector<std::string>;

struct logged_attention {
    call_log* log;

    void operator()(layer::const_heads_view q, layer::const_heads_view k, layer::const_heads_view v,
                    layer::heads_view out, layer::lse_view lse, stream_ref stream) const {
        latpar::detail::require(k.extents[0] > 0, "called without a key");
        log->calls.emplace_back("attend");
        layer::reference_attention{}(q, k, v, out, lse, stream);
    }
};

}  // namespace

TEST_CASE("a ring starts its exchange before it attends and waits after") {
    std::mt19937 random(1);
    const attention_case c({4, 2, 6, dtype::f32}, {{3, 2, 4}}, random);
    thread_team(3).run([&](thread_communicator& world) {
        call_log log;
        logged comm(world.duplicate(), log);
        layer::ring policy(logged_attention{&log}, comm, layer::plan_ring(c.shape, c.sequence, 3),
                           logged_kernels(log));
        const auto expected = c.rows_of(c.expected(), world.rank());
        EXPECT(relative_l2(attend_on_rank(policy, c, world.rank(), false), expected) < 1e-5);
        EXPECT(log.calls ==
               calls{"start (2, 2)", "attend", "wait", "start (2, 2)", "attend", "wait", "attend"});
        // Dense keys are sent from where they are.
        EXPECT(log.copies == 0);
        static_cast<void>(attend_on_rank(policy, c, world.rank(), true));
        EXPECT(log.copies == 2);
    });
}

TEST_CASE("Ulysses moves q, k and v in one exchange and the output in one") {
    std::mt19937 random(2);
    const attention_case c({6, 3, 6, dtype::f32}, {{3, 2, 4}}, random);
    thread_team(3).run([&](thread_communicator& world) {
        call_log log;
        logged comm(world.duplicate(), log);
        layer::ulysses policy(logged_attention{&log}, comm,
                              layer::plan_ulysses(c.shape, c.sequence, 3), logged_kernels(log));
        const auto expected = c.rows_of(c.expected(), world.rank());
        EXPECT(attend_on_rank(policy, c, world.rank(), true) == expected);
        EXPECT(log.calls == calls{"start (6, 6)", "wait", "attend", "start (2, 2)", "wait"});
        // q, k, v and out, for the own heads and for those of two peers: one pass each.
        EXPECT(log.copies == 3 * 3 + 3);
    });
    // Key-only rows of rank 1 land behind all tokens, in messages of their own.
    const attention_case lent({6, 3, 6, dtype::f32}, {{3, 2, 4}, 0, 0, {}, {0, 2, 0}}, random);
    thread_team(3).run([&](thread_communicator& world) {
        call_log log;
        logged comm(world.duplicate(), log);
        layer::ulysses policy(logged_attention{&log}, comm,
                              layer::plan_ulysses(lent.shape, lent.sequence, 3),
                              logged_kernels(log));
        const auto expected = lent.rows_of(lent.expected(), world.rank());
        EXPECT(attend_on_rank(policy, lent, world.rank(), true) == expected);
        const char* const out = world.rank() == 1 ? "start (10, 6)" : "start (6, 8)";
        EXPECT(log.calls == calls{out, "wait", "attend", "start (2, 2)", "wait"});
        EXPECT(log.copies == 3 * 3 + 3 + (world.rank() == 1 ? 3 * 2 : 0));
    });
}

TEST_CASE("one rank alone copies nothing, and attends over no key without the user") {
    std::mt19937 random(3);
    for (const token_sequence& sequence :
         {token_sequence{{5}}, token_sequence{{0}}, token_sequence{{5}, 0, 0, {}, {2}}}) {
        const attention_case c({4, 2, 6, dtype::f32}, sequence, random);
        const calls expected = sequence.tokens[0] > 0 ? calls{"attend"} : calls{};
        thread_team(1).run([&](thread_communicator& world) {
            call_log log;
            logged comm(world.duplicate(), log);
            layer::ulysses ulysses(logged_attention{&log}, comm,
                                   layer::plan_ulysses(c.shape, c.sequence, 1),
                                   logged_kernels(log));
            EXPECT(attend_on_rank(ulysses, c, 0, true) == c.expected());
            EXPECT(log.calls == expected);
            layer::ring ring(logged_attention{&log}, comm, layer::plan_ring(c.shape, c.sequence, 1),
                             logged_kernels(log));
            log.calls.clear();
            EXPECT(attend_on_rank(ring, c, 0, true) == c.expected());
            EXPECT(log.calls == expected);
            layer::usp usp(logged_attention{&log}, comm, comm,
                           layer::plan_usp(c.shape, c.sequence, 1, 1), logged_kernels(log));
            log.calls.clear();
            EXPECT(attend_on_rank(usp, c, 0, true) == c.expected());
            EXPECT(log.calls == expected);
            EXPECT(log.copies == 0);
        });
    }
}

TEST_CASE("nothing is in flight any more when an attention has thrown") {
    // 32 KiB of keys on each rank, which die before the policy.
    std::mt19937 random(4);
    const attention_case c({4, 4, 32, dtype::f32}, {{64, 64}}, random);
    for (const bool in_usp : {false, true}) {
        const auto texts = messages_of(2, [&](thread_communicator& world) {
            call_log log;
            logged comm(world.duplicate(), log);
            logged alone(world.split(world.rank(), 0).value(), log);
            const auto failing = [&](auto q, auto k, auto v, auto out, auto lse, auto stream) {
                // Both exchanges have met by then, and rank 0 has not come to copy. It may go on:
                // all that it was to get from rank 1 is there.
                std::this_thread::sleep_for(
                    std::chrono::milliseconds(world.rank() == 1 ? 40 : 120));
                if (world.rank() == 1) throw std::runtime_error("no memory left");
                layer::reference_attention{}(q, k, v, out, lse, stream);
            };
            const auto run = [&](auto&& policy) {
                try {
                    static_cast<void>(attend_on_rank(policy, c, world.rank(), false));
                } catch (...) {
                    latpar::detail::require(log.in_flight == 0, "still in flight");
                    throw;
                }
            };
            if (in_usp) {
                run(layer::usp(failing, alone, comm, layer::plan_usp(c.shape, c.sequence, 1, 2)));
            } else {
                run(layer::ring(failing, comm, layer::plan_ring(c.shape, c.sequence, 2)));
            }
        });
        CHECK(texts[1] == "no memory left");
        if (!texts[0].empty()) CHECK_THAT(texts[0], ContainsSubstring("no memory left"));
    }
}

TEST_CASE("memory that others may still write to is given up, not back, when a rank fails") {
    std::mt19937 random(6);
    const attention_case c({4, 4, 8, dtype::f32}, {{5, 7}}, random);
    for (const bool fails : {false, true}) {
        // Others may write there as long as any rank runs.
        std::array<std::pmr::monotonic_buffer_resource, 2> all;
        thread_team(2).run([&](thread_communicator& world) {
            counting_resource memory(&all[static_cast<std::size_t>(world.rank())]);
            direct_threads comm(world.duplicate());
            const auto attend = [&](auto q, auto k, auto v, auto out, auto lse, auto stream) {
                if (fails && world.rank() == 1) throw std::runtime_error("no memory left");
                layer::reference_attention{}(q, k, v, out, lse, stream);
            };
            const auto call = [&] {
                layer::ulysses policy(attend, comm, layer::plan_ulysses(c.shape, c.sequence, 2),
                                      kernel::host{}, {&memory, memory_space::host});
                static_cast<void>(attend_on_rank(policy, c, world.rank(), false));
            };
            if (fails) {
                expect_throws(call, "no memory left");
            } else {
                call();
            }
            EXPECT((memory.bytes_in_use() > 0) == fails);
        });
    }
}

TEST_CASE("a plan that one rank refuses is one error on all, after which they go on") {
    const attention_shape shape{4, 2, 4, dtype::f32};
    std::mt19937 random(5);
    const attention_case c(shape, {{2, 3, 1, 4}}, random);
    for (int odd = 0; odd < 4; ++odd) {
        token_sequence other = c.sequence;
        other.tokens[2] += 1;
        std::vector<std::string> texts(4);
        thread_team(4).run([&](thread_communicator& world) {
            mesh<thread_communicator> axes(world, {{"ring", 2}, {"ulysses", 2}});
            thread_communicator& near = axes.axis("ulysses");
            thread_communicator& far = axes.axis("ring");
            const auto plan = layer::plan_usp(shape, c.sequence, 2, 2);
            const auto wrong = layer::plan_usp(shape, other, 2, 2);
            layer::usp policy(layer::reference_attention{}, near, far, plan);
            try {
                static_cast<void>(policy.add(world.rank() == odd ? wrong : plan));
            } catch (const usage_error& error) {
                texts[static_cast<std::size_t>(world.rank())] = error.what();
            }
            // Meshes that are none of the communicators' likewise.
            bool refused = false;
            try {
                static_cast<void>(policy.add(layer::plan_usp(shape, c.sequence, 4, 1)));
            } catch (const usage_error&) {
                refused = true;
            }
            EXPECT(refused);
            const auto expected = c.rows_of(c.expected(), world.rank());
            EXPECT(relative_l2(attend_on_rank(policy, c, world.rank(), false), expected) < 1e-5);
        });
        CHECK_THAT(texts[0], ContainsSubstring("the ranks disagree on the USP plan"));
        CHECK_THAT(texts[0], ContainsSubstring(latpar::detail::concat("rank ", odd, ": ")));
        for (const std::string& text : texts) CHECK(text == texts[0]);
    }
    // Along one axis.
    thread_team(2).run([&](thread_communicator& comm) {
        const token_sequence two{{2, 3}};
        layer::ring ring(layer::reference_attention{}, comm, layer::plan_ring(shape, two, 2));
        layer::ulysses ulysses(layer::reference_attention{}, comm,
                               layer::plan_ulysses(shape, two, 2));
        int refused = 0;
        const token_sequence own{{2, 3 + comm.rank()}};
        try {
            static_cast<void>(ring.add(layer::plan_ring(shape, own, 2)));
        } catch (const usage_error&) {
            ++refused;
        }
        try {
            static_cast<void>(ulysses.add(layer::plan_ulysses(shape, own, 2)));
        } catch (const usage_error&) {
            ++refused;
        }
        EXPECT(refused == 2);
        std::mt19937 same(6);
        const attention_case small(shape, two, same);
        const auto expected = small.rows_of(small.expected(), comm.rank());
        EXPECT(relative_l2(attend_on_rank(ring, small, comm.rank(), false), expected) < 1e-5);
        EXPECT(attend_on_rank(ulysses, small, comm.rank(), false) == expected);
    });
}

TEST_CASE("a loop that one rank of a mesh runs otherwise is one error on all") {
    const std::array<index_t, 5> extents{1, 1, 1, 2, 2};
    for (int odd = 0; odd < 4; ++odd) {
        std::vector<std::string> texts(4);
        thread_team(4).run([&](thread_communicator& world) {
            mesh<thread_communicator> axes(world, {{"ring", 2}, {"ulysses", 2}});
            const auto model = [](const_latent_view, const step_info&, latent_view, stream_ref) {};
            lockstep policy(model, std::vector{&axes.axis("ring"), &axes.axis("ulysses")},
                            extents3{1, 2, 2});
            latent_problem problem;
            problem.channels = extents[1];
            problem.extents = {1, 2, 2};
            try {
                policy.agree(problem, world.rank() == odd ? "20 steps" : "10 steps");
            } catch (const usage_error& error) {
                texts[static_cast<std::size_t>(world.rank())] = error.what();
            }
        });
        CHECK_THAT(texts[0], ContainsSubstring(latpar::detail::concat("rank ", odd, ": 20 steps")));
        for (const std::string& text : texts) CHECK(text == texts[0]);
    }
}

TEST_CASE("a loop over another latent than lockstep was made for is one error on all") {
    for (const std::string& text : messages_of(2, [](thread_communicator& comm) {
             const auto model = [](const_latent_view, const step_info&, latent_view, stream_ref) {};
             lockstep policy(model, std::vector{&comm}, extents3{1, 4, 4});
             latent_problem problem;
             problem.extents = {comm.rank() == 1 ? 2 : 1, 4, 4};
             policy.agree(problem, "10 steps");
         })) {
        CHECK_THAT(text, ContainsSubstring("rank 1: the loop samples") &&
                             ContainsSubstring("pass it the extents of the latent"));
    }
}

TEST_CASE("an attention that does not write its lse gives no numbers in a ring") {
    std::mt19937 random(7);
    const attention_case c({2, 1, 4, dtype::f32}, {{3, 2}, 1, 0, {}}, random);
    const auto forgetful = [](auto q, auto k, auto v, auto out, auto, auto stream) {
        layer::reference_attention{}(q, k, v, out, {}, stream);
    };
    thread_team(2).run([&](thread_communicator& comm) {
        layer::ring policy(forgetful, comm, layer::plan_ring(c.shape, c.sequence, 2));
        for (int call = 0; call < 2; ++call) {
            for (const float x : attend_on_rank(policy, c, comm.rank(), false)) {
                EXPECT(std::isnan(x));
            }
        }
    });
}

TEST_CASE("views that do not fit are listed, and an output over an input is refused") {
    std::vector<float> x(2 * 4 * 4);
    std::vector<float> y(x.size());
    const auto view = [](std::vector<float>& values, index_t tokens, index_t heads) {
        return make_view(values.data(), std::array<index_t, 3>{tokens, heads, 4});
    };
    const attention_shape shape{4, 2, 4, dtype::f32};
    for (const bool in_ring : {false, true}) {
        const auto called = [&](layer::heads_view q, layer::heads_view k, layer::heads_view v,
                                layer::heads_view out) {
            self_communicator comm;
            if (in_ring) {
                layer::ring policy(layer::reference_attention{}, comm,
                                   layer::plan_ring(shape, {{2}}, 1));
                policy(q, k, v, out);
            } else {
                layer::ulysses policy(layer::reference_attention{}, comm,
                                      layer::plan_ulysses(shape, {{2}}, 1));
                policy(q, k, v, out);
            }
        };
        CHECK_NOTHROW(called(view(x, 2, 4), view(x, 2, 2), view(x, 2, 2), view(y, 2, 4)));
        CHECK_THROWS_WITH(
            called(view(x, 2, 4), view(x, 2, 2), view(x, 1, 2), view(y, 2, 4)),
            ContainsSubstring("q [2, 4, 4] in f32 on host") && ContainsSubstring("v [1, 2, 4]") &&
                ContainsSubstring("out [2, 4, 4]") && ContainsSubstring("plan for what is passed"));
        CHECK_THROWS_WITH(called(view(x, 2, 4), view(y, 2, 2), view(y, 2, 2), view(x, 2, 4)),
                          ContainsSubstring("written over q"));
        CHECK_THROWS_WITH(called(view(x, 2, 4), view(x, 2, 2), view(y, 2, 2), view(y, 2, 4)),
                          ContainsSubstring("written over v"));
    }
}

TEST_CASE("memory that the kernels or the communicator do not reach is refused") {
    const memory_source elsewhere{std::pmr::get_default_resource(), memory_space::cuda};
    const attention_shape shape{4, 2, 4, dtype::f32};
    const layer::reference_attention attend;
    const auto refused = ContainsSubstring("pass a source for theirs");
    const auto make = [&](int which) {
        self_communicator comm;
        if (which == 0)
            layer::ring(attend, comm, layer::plan_ring(shape, {{2}}, 1), kernel::host{}, elsewhere);
        if (which == 1)
            layer::ulysses(attend, comm, layer::plan_ulysses(shape, {{2}}, 1), kernel::host{},
                           elsewhere);
        if (which == 2)
            layer::usp(attend, comm, comm, layer::plan_usp(shape, {{2}}, 1, 1), kernel::host{},
                       elsewhere);
    };
    for (const int which : {0, 1, 2}) CHECK_THROWS_WITH(make(which), refused);
}

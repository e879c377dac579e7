// SPDX-License-Identifier: Apache-2.0
// Guidance on several ranks: against one rank, against its plan.
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/step/guidance_parallel.hpp>
#include <latpar/step/guided.hpp>

#include <support/catch.hpp>
#include <support/latent_parallel_run.hpp>
#include <support/messages_of.hpp>
#include <support/recorded.hpp>

#include <cmath>
#include <string>
#include <vector>

using namespace latpar;

namespace {

/// Differs by branch in more than an offset, and tells who was called.
struct branching {
    std::vector<guidance_branch>* called = nullptr;
    dtype rounded = dtype::f32;

    [[nodiscard]] static index_t max_batch() { return 64; }
    void operator()(const_latent_view z, const step_info& info, latent_view p, stream_ref) const {
        if (called) called->push_back(info.samples[0].branch);
        const float* x = z.as<float>();
        float* out = p.as<float>();
        const index_t each = z.elements() / std::max<index_t>(1, z.extents[0]);
        for (index_t k = 0; k < z.elements(); ++k) {
            const sample_info& sample = info.samples[static_cast<std::size_t>(k / each)];
            const float scale = 0.4f + 0.3f * static_cast<float>(sample.branch);
            out[k] = std::tanh(scale * x[k]) * static_cast<float>(0.5 + sample.timestep / 1000);
        }
        if (rounded != dtype::f32) kernel::host{}.round(p, rounded);
    }
};

std::vector<guidance_rule> rules(index_t steps) {
    std::vector<double> scales;
    for (index_t i = 0; i < steps; ++i) scales.push_back(i % 3 == 0 ? 1.0 : 1.0 + 0.7 * i);
    return {guidance_rule::classifier_free(4.0), guidance_rule::classifier_free(scales),
            guidance_rule::image_and_text(1.5, 6.0),
            guidance_rule::of({guidance_branch::unconditional, guidance_branch::conditional,
                               guidance_branch::image},
                              {{-2, 5, 0}})};
}

struct guidance_report {
    std::vector<float> latent;
    traffic sent_and_received;
    index_t policy_bytes = 0;
    index_t late_allocations = 0;
    std::vector<guidance_branch> called;
};

template <communicator Comm>
guidance_report sample_guided(Comm& inner, const guidance_parallel_plan& plan,
                              const sampling_case& c) {
    metered comm(inner.duplicate());
    counting_resource memory;
    guidance_report out;
    guidance_parallel policy(branching{&out.called}, comm, plan, kernel::host{},
                             {&memory, memory_space::host});
    out.policy_bytes = memory.bytes_in_use();
    const index_t before = memory.allocations();
    out.latent = run_loop(policy, c, comm.rank() == 0 || plan.options.result_everywhere);
    out.late_allocations = memory.allocations() - before;
    out.sent_and_received = comm.account().total();
    return out;
}

std::vector<guidance_report> on_threads(const guidance_parallel_plan& plan,
                                        const sampling_case& c) {
    std::vector<guidance_report> out(static_cast<std::size_t>(plan.ranks));
    thread_team(plan.ranks).run([&](thread_communicator& comm) {
        out[static_cast<std::size_t>(comm.rank())] = sample_guided(comm, plan, c);
    });
    return out;
}

std::vector<float> guided_alone(const guidance_rule& rule, const sampling_case& c,
                                dtype rounded = dtype::f32) {
    guided model(branching{nullptr, rounded}, rule);
    return run_loop(model, c, true);
}

}  // namespace

TEST_CASE("branches on several ranks give the bits of one rank, and the bytes of the plan") {
    for (const std::string_view name : schedule::names) {
        const sampling_case c{{2, 3, 2, 4, 6}, schedule::by_name(name, 7), 3};
        for (const guidance_rule& rule : rules(7)) {
            const auto expected = guided_alone(rule, c);
            for (int ranks = 1; ranks <= static_cast<int>(rule.branches().size()); ++ranks) {
                CAPTURE(name, rule.fingerprint(), ranks);
                const auto plan = plan_guidance_parallel(c.problem(), {rule}, ranks);
                const auto reports = on_threads(plan, c);
                index_t bytes = 0;
                std::size_t most_calls = 0;
                for (int rank = 0; rank < ranks; ++rank) {
                    const auto& report = reports[static_cast<std::size_t>(rank)];
                    CHECK(report.latent == expected);
                    CHECK(report.sent_and_received.bytes_sent == plan.bytes_sent_by(rank));
                    CHECK(report.sent_and_received.bytes_received == plan.bytes_received_by(rank));
                    CHECK(report.policy_bytes == plan.workspace_bytes());
                    CHECK(report.late_allocations == 0);
                    bytes += report.sent_and_received.bytes_sent;
                    most_calls = std::max(most_calls, report.called.size());
                }
                CHECK(bytes == plan.bytes());
                CHECK(static_cast<index_t>(most_calls) == plan.critical_path_calls());
                if (ranks == 1) CHECK(plan.critical_path_calls() == plan.serial_calls());
            }
        }
    }
}

TEST_CASE("two ranks exchange one prediction each a step, once") {
    const sampling_case c{{1, 3, 2, 4, 6}, schedule::by_name("euler_flow", 5), 3};
    const auto plan = plan_guidance_parallel(c.problem(), {guidance_rule::classifier_free(3.0)}, 2);
    CHECK(plan.bytes() == 5 * 2 * (3 * 2 * 4 * 6) * 4);
    CHECK(plan.critical_path_calls() == 5);
    CHECK(plan.serial_calls() == 10);
    const auto reports = on_threads(plan, c);
    CHECK(reports[0].sent_and_received.messages_sent == 5);
    CHECK(reports[0].called == std::vector<guidance_branch>(5, guidance_branch::conditional));
    CHECK(reports[1].called == std::vector<guidance_branch>(5, guidance_branch::unconditional));
}

TEST_CASE("a branch of weight zero is not called, and a single one does not travel") {
    const sampling_case c{{1, 3, 2, 4, 6}, schedule::by_name("euler_flow", 4), 3};
    const auto rule = guidance_rule::classifier_free({1.0, 3.0, 0.0, 3.0});
    const auto plan = plan_guidance_parallel(c.problem(), {rule}, 2);
    const auto reports = on_threads(plan, c);
    using enum guidance_branch;
    CHECK(reports[0].called ==
          std::vector<guidance_branch>{conditional, conditional, unconditional, conditional});
    CHECK(reports[1].called ==
          std::vector<guidance_branch>{conditional, unconditional, unconditional, unconditional});
    CHECK(plan.bytes() == 2 * 2 * (3 * 2 * 4 * 6) * 4);
    CHECK(plan.serial_calls() == 6);
    CHECK(reports[1].latent == guided_alone(rule, c));
}

TEST_CASE("predictions that travel narrow are rounded on every rank") {
    const sampling_case c{{1, 3, 2, 4, 6}, schedule::by_name("unipc_flow", 5), 3};
    for (const guidance_rule& rule :
         {guidance_rule::classifier_free(4.0), guidance_rule::image_and_text(1.5, 6.0)}) {
        for (const dtype wire : {dtype::bf16, dtype::f16}) {
            const auto expected = guided_alone(rule, c, wire);
            const auto plan = plan_guidance_parallel(c.problem(), {rule, wire}, 2);
            for (const auto& report : on_threads(plan, c)) {
                CHECK(report.latent == expected);
                CHECK(report.policy_bytes == plan.workspace_bytes());
            }
            CHECK(2 * plan.bytes() == plan_guidance_parallel(c.problem(), {rule}, 2).bytes());
        }
    }
}

TEST_CASE("three branches are u + image (i - u) + text (c - i)") {
    const auto rule = guidance_rule::image_and_text(1.5, 6.0);
    CHECK(rule.branches() == std::vector{guidance_branch::conditional, guidance_branch::image,
                                         guidance_branch::unconditional});
    CHECK(rule.weights(3) == std::vector<float>{6.0f, -4.5f, -0.5f});
    CHECK(guidance_rule::classifier_free(4.0).weights(9) == std::vector<float>{4.0f, -3.0f});
}

TEST_CASE("samples of one batch may be at different steps") {
    const sampling_case c{{3, 2, 2, 4, 6}, schedule::by_name("euler_flow", 4), 3};
    for (const guidance_rule& rule : rules(4)) {
        guided model(branching{}, rule);
        latent z(c.extents);
        philox_noise(3).fill(z.view(), box_of({2, 4, 6}), {0, 0});
        std::vector<sample_info> samples(3);
        for (index_t b = 0; b < 3; ++b) {
            samples[static_cast<std::size_t>(b)].step = b;
            samples[static_cast<std::size_t>(b)].timestep = 900.0 - 200.0 * double(b);
        }
        latent together(c.extents);
        model(std::as_const(z).view(), {samples, box_of({2, 4, 6}), {2, 4, 6}, {}}, together.view(),
              {});
        for (index_t b = 0; b < 3; ++b) {
            latent apart({1, 2, 2, 4, 6});
            const_latent_view one = z.view();
            one.data += b * one.strides[0] * 4;
            one.extents[0] = 1;
            model(one,
                  {std::span(samples).subspan(static_cast<std::size_t>(b), 1),
                   box_of({2, 4, 6}),
                   {2, 4, 6},
                   {}},
                  apart.view(), {});
            const auto n = apart.elements<float>().size();
            CHECK(
                relative_l2(together.elements<float>().subspan(static_cast<std::size_t>(b) * n, n),
                            apart.elements<float>()) < 1e-6);
        }
    }
}

TEST_CASE("what guidance cannot do is refused with value and remedy") {
    const sampling_case c{{1, 2, 2, 4, 6}, schedule::by_name("euler_flow", 4), 3};
    using branch = guidance_branch;
    CHECK_THROWS_WITH(guidance_rule::of({}, {{}}), ContainsSubstring("no branch"));
    CHECK_THROWS_WITH(guidance_rule::of({branch::image, branch::image}, {{1, 2}}),
                      ContainsSubstring("more than once"));
    CHECK_THROWS_WITH(guidance_rule::of({branch::image}, {{1, 2}}),
                      ContainsSubstring("2 weights for 1 branches"));
    CHECK_THROWS_WITH(guidance_rule::of({branch::image}, {{0}}), ContainsSubstring("zero"));
    CHECK_THROWS_WITH(guidance_rule::classifier_free(std::nan("")), ContainsSubstring("nan"));
    CHECK_THROWS_WITH(guidance_rule::classifier_free(1e300), ContainsSubstring("1e+300"));
    const auto refused = [&](guidance_parallel_options options, int ranks, const char* text) {
        CHECK_THROWS_WITH(plan_guidance_parallel(c.problem(), options, ranks),
                          ContainsSubstring(text));
    };
    const auto rule = guidance_rule::classifier_free(3.0);
    refused({rule}, 3, "use 1 to 2 ranks");
    refused({rule}, 0, "0 ranks");
    refused({guidance_rule::classifier_free({1.0, 2.0})}, 2, "weights for 2 steps");
    refused({rule, dtype::i64}, 2, "use f32, bf16 or f16");
    refused({rule, dtype::f32, 0, true, {box_of({9, 9, 9})}}, 2, "does not lie within");
    refused({rule, dtype::f32, 0, true, {box{}, box{}}}, 2, "2 predicted boxes for 4 steps");
}

TEST_CASE("rules that differ, and loops that were not planned, are refused on every rank") {
    const sampling_case c{{1, 2, 2, 4, 6}, schedule::by_name("euler_flow", 4), 3};
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             const auto rule = guidance_rule::classifier_free(3.0 + comm.rank());
             guidance_parallel policy(branching{}, comm,
                                      plan_guidance_parallel(c.problem(), {rule}, 2));
         })) {
        CHECK_THAT(text, ContainsSubstring("the guidance plan"));
    }
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             const auto rule = guidance_rule::classifier_free(3.0);
             guidance_parallel policy(branching{}, comm,
                                      plan_guidance_parallel(c.problem(), {rule}, 2));
             loop::serial loop(policy, schedule::by_name("euler_flow", 5), c.extents);
         })) {
        CHECK_THAT(text, ContainsSubstring("in 5 steps, guidance was planned for"));
    }
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             const auto rule = guidance_rule::classifier_free(3.0);
             const any_model model = [&](const_latent_view z, const step_info& info, latent_view p,
                                         stream_ref s) {
                 if (comm.rank() == 1 && info.samples[0].step == 2)
                     throw std::runtime_error("no memory left");
                 branching{}(z, info, p, s);
             };
             guidance_parallel policy(model, comm, plan_guidance_parallel(c.problem(), {rule}, 2));
             static_cast<void>(run_loop(policy, c, true));
         })) {
        CHECK_THAT(text, ContainsSubstring("no memory"));
    }
}

// SPDX-License-Identifier: Apache-2.0
// BatchStep: against ParaStep, against serial, batched against looped.
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/loop/batch_step.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>
#include <latpar/step/latent_parallel.hpp>

#include <support/all_schedules.hpp>
#include <support/catch.hpp>
#include <support/closed_form.hpp>
#include <support/own_stream.hpp>
#include <support/para_step_run.hpp>
#include <support/recorded.hpp>

#include <algorithm>
#include <string>
#include <vector>

using namespace latpar;

namespace {

constexpr closed_form guided_form{0.7f, -0.3f, 4.0f};

/// The closed form, taking at most so many samples, and what it was asked.
struct counted_form {
    index_t most = 1;
    std::vector<index_t> batches{};

    [[nodiscard]] index_t max_batch() const { return most; }
    void operator()(const_latent_view z, const step_info& info, latent_view p, stream_ref s) {
        batches.push_back(z.extents[0]);
        guided_form(z, info, p, s);
    }
};

struct batch_report {
    std::vector<float> latent;
    std::vector<index_t> batches;
    index_t loop_bytes = 0;
    index_t late_allocations = 0;
};

batch_report sample_in_batches(const sampling_case& c, const loop::batch_step_plan& plan,
                               index_t most) {
    counted_form model{most};
    model.batches.reserve(1000);
    counting_resource memory;
    loop::batch_step loop(model, c.schedule, plan, kernel::host{}, {&memory, memory_space::host});
    batch_report out;
    out.loop_bytes = memory.bytes_in_use();
    const index_t before = memory.allocations();
    const philox_noise noise(c.seed);
    loop.start(noise);
    loop.run(noise);
    out.latent.resize(static_cast<std::size_t>(c.extents[0] * c.extents[1] * c.extents[2] *
                                               c.extents[3] * c.extents[4]));
    loop.collect(make_view(out.latent.data(), c.extents));
    out.late_allocations = memory.allocations() - before;
    out.batches = model.batches;
    return out;
}

loop::batch_step_plan plan_of(const sampling_case& c, int degree, index_t warm_up,
                              loop::reuse reuse, bool predict_last) {
    return loop::plan_batch_step(c.problem(), {warm_up, degree, reuse, predict_last, {}});
}

}  // namespace

TEST_CASE("one call at a time is ParaStep with the newest prediction and shared history, bitwise") {
    for (const index_t batch : {1, 2}) {
        for (const linear_scheduler& scheduler : all_schedules(12)) {
            const sampling_case c{{batch, 2, 3, 4, 6}, scheduler, 5};
            for (const int degree : {1, 2, 3, 4, 5}) {
                for (const loop::reuse reuse : {loop::reuse::newest, loop::reuse::extrapolated}) {
                    for (const index_t warm_up : {1, 3, 12}) {
                        CAPTURE(batch, scheduler.name(), degree, name_of(reuse), warm_up);
                        loop::para_step_options options;
                        options.warm_up = warm_up;
                        options.reuse = reuse;
                        options.degree = degree;
                        self_communicator alone;
                        any_model model = guided_form;
                        const auto rounds = sample_in_rounds(
                            alone, plan_para_step(c.problem(), options, 1), model, c);
                        const auto plan = plan_of(c, degree, warm_up, reuse, true);
                        const auto looped = sample_in_batches(c, plan, batch);
                        CHECK(looped.latent == rounds.latent);
                        CHECK(looped.batches == std::vector<index_t>(12, batch));
                        CHECK(looped.late_allocations == 0);
                        CHECK(looped.loop_bytes == plan.workspace_bytes());
                        // The closed form treats the samples of a batch alike.
                        for (const index_t most : {2 * batch, 1000 * batch}) {
                            CHECK(relative_l2(sample_in_batches(c, plan, most).latent,
                                              looped.latent) < 1e-5);
                        }
                    }
                }
            }
        }
    }
}

TEST_CASE("batches are as large as planned, and as the model takes them") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 12), 5};
    using sizes = std::vector<index_t>;
    const auto all = plan_of(c, 4, 3, loop::reuse::newest, true);
    CHECK(sample_in_batches(c, all, 1000).batches == sizes{1, 1, 1, 4, 4, 1});
    CHECK(sample_in_batches(c, all, 3).batches == sizes{1, 1, 1, 3, 1, 3, 1, 1});
    CHECK(all.critical_path_calls() == 6);
    // Eight steps are left after four: the last is not predicted, and leads a batch.
    const auto last_alone = plan_of(c, 4, 4, loop::reuse::newest, false);
    CHECK(sample_in_batches(c, last_alone, 1000).batches == sizes{1, 1, 1, 1, 4, 3, 1});
    CHECK(last_alone.critical_path_calls() == 7);
    CHECK(plan_of(c, 4, 3, loop::reuse::newest, false).rounds == all.rounds);
}

TEST_CASE("the last step is done from a true latent unless it may be predicted") {
    for (index_t steps = 1; steps <= 20; ++steps) {
        const sampling_case c{{1, 1, 1, 2, 2}, schedule::by_name("euler_flow", steps), 5};
        for (index_t warm_up = 1; warm_up <= steps; ++warm_up) {
            for (int degree = 1; degree <= 5; ++degree) {
                const auto plan = plan_of(c, degree, warm_up, loop::reuse::newest, false);
                index_t next = warm_up;
                for (const auto& round : plan.rounds) {
                    REQUIRE(round.first == next);
                    REQUIRE(round.count >= 1);
                    REQUIRE(round.count <= degree);
                    next += round.count;
                }
                REQUIRE(next == steps);
                if (!plan.rounds.empty()) REQUIRE(plan.rounds.back().first == steps - 1);
            }
        }
    }
}

TEST_CASE("batches of one, or a warm-up of all steps, are the serial run, bitwise") {
    for (const linear_scheduler& scheduler : all_schedules(7)) {
        const sampling_case c{{2, 2, 3, 4, 6}, scheduler, 3};
        const auto serial = sample_serially(guided_form, c);
        CHECK(sample_in_batches(c, plan_of(c, 1, 2, loop::reuse::newest, false), 1000).latent ==
              serial);
        CHECK(
            sample_in_batches(c, plan_of(c, 4, 7, loop::reuse::extrapolated, false), 1000).latent ==
            serial);
    }
}

TEST_CASE("an engine that owns its loop gets whole batches from the stepper") {
    const sampling_case c{{2, 2, 3, 4, 6}, schedule::by_name("unipc_flow", 11), 5};
    const auto plan = plan_of(c, 3, 2, loop::reuse::newest, false);
    const auto expected = sample_in_batches(c, plan, 1000).latent;
    counted_form model{1000};
    loop::batch_step loop(model, c.schedule, plan);
    loop.start(philox_noise(c.seed));
    while (!loop.done()) {
        const auto next = loop.next_request();
        CHECK(static_cast<index_t>(next.info.samples.size()) == next.z.extents[0]);
        for (index_t s = 0; s < next.z.extents[0]; ++s) {
            CHECK(next.info.samples[static_cast<std::size_t>(s)].step == loop.step() + s / 2);
        }
        latent elsewhere(next.prediction.extents);
        model(next.z, next.info, elsewhere.view(), {});
        loop.supply(elsewhere.view());
        loop.advance();
    }
    std::vector<float> out(expected.size());
    loop.collect(make_view(out.data(), c.extents));
    CHECK(out == expected);
}

TEST_CASE("BatchStep can stop between batches and go on") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("unipc_flow", 11), 5};
    const auto plan = plan_of(c, 3, 2, loop::reuse::newest, false);
    const auto expected = sample_in_batches(c, plan, 1000).latent;
    counted_form model{1000};
    loop::batch_step loop(model, c.schedule, plan);
    const philox_noise noise(c.seed);
    loop.start(noise);
    CHECK_FALSE(loop.run(noise, [](index_t step) { return step != 4; }));
    CHECK(loop.step() == 5);
    CHECK(loop.run(noise, [](index_t) { return true; }));
    std::vector<float> out(expected.size());
    loop.collect(make_view(out.data(), c.extents));
    CHECK(out == expected);
}

TEST_CASE("what BatchStep cannot do is refused with value and remedy") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 6), 5};
    const auto refused = [&](loop::batch_step_options options, const std::string& text) {
        CHECK_THROWS_WITH(loop::plan_batch_step(c.problem(), options), ContainsSubstring(text));
    };
    refused({0, 2, loop::reuse::newest, false, {}}, "a warm-up of 0");
    refused({7, 2, loop::reuse::newest, false, {}}, "use 1 to 6");
    refused({2, 0, loop::reuse::newest, false, {}}, "batches of 0 steps");
    refused({2, 2, loop::reuse::own, false, {}}, "use newest or extrapolated");
    refused({2, 2, loop::reuse::newest, false, box_of({9, 9, 9})}, "held box");
    counted_form model{1};
    const auto plan = plan_of(c, 2, 2, loop::reuse::newest, false);
    CHECK_THROWS_WITH(loop::batch_step(model, schedule::by_name("unipc_flow", 6), plan),
                      ContainsSubstring("plan with latent_problem::of"));
    loop::batch_step loop(model, c.schedule, plan);
    CHECK_THROWS_WITH(loop.next_request(), ContainsSubstring("call start"));
}

TEST_CASE("ranks of the model with other plans are refused, and narrow latents are planned for") {
    const sampling_case c{{1, 2, 4, 4, 6}, schedule::by_name("euler_flow", 6), 5};
    std::vector<std::string> messages(2);
    thread_team(2).run([&](thread_communicator& comm) {
        try {
            latent_parallel_options latent;
            latent.layout = latent_layout::replicated;
            latent_parallel model(guided_form, comm, plan_latent_parallel(c.problem(), latent, 2));
            loop::batch_step loop(model, c.schedule,
                                  plan_of(c, 2 + comm.rank(), 2, loop::reuse::newest, false));
        } catch (const std::exception& error) {
            messages[static_cast<std::size_t>(comm.rank())] = error.what();
        }
    });
    for (const std::string& text : messages) CHECK_THAT(text, ContainsSubstring("degree=3"));
    for (const dtype type : {dtype::bf16, dtype::f16}) {
        latent_problem problem = c.problem();
        problem.type = type;
        const auto plan = loop::plan_batch_step(problem, {2, 3, loop::reuse::newest, false, {}});
        const auto zero = [](const_latent_view, const step_info&, latent_view out, stream_ref) {
            kernel::host{}.linear_combination({}, {}, {&out, 1});
        };
        counting_resource memory;
        loop::batch_step loop(zero, c.schedule, plan, kernel::host{},
                              {&memory, memory_space::host});
        loop.start(philox_noise(1));
        loop.run(philox_noise(1), own_stream{});
        CHECK(memory.peak_bytes() == plan.workspace_bytes());
    }
}

TEST_CASE("a batch that lacks its noise can be asked for again with it, or must begin anew") {
    auto options = schedule::ddim_options::epsilon(6);
    options.eta = 1;
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::ddim(options), 5};
    const auto plan = plan_of(c, 2, 2, loop::reuse::newest, false);
    const auto expected = sample_in_batches(c, plan, 1).latent;
    counted_form model{1};
    loop::batch_step loop(model, c.schedule, plan);
    const philox_noise noise(c.seed);
    const auto step = [&] {
        const auto next = loop.next_request(noise);
        REQUIRE(next.z.extents[0] == 1);
        model(next.z, next.info, next.prediction, {});
        loop.advance(noise);
    };
    loop.start(noise);
    while (loop.step() < 2) step();
    CHECK_THROWS_WITH(loop.next_request(), ContainsSubstring("pass a noise source"));
    while (!loop.done()) step();
    std::vector<float> out(expected.size());
    loop.collect(make_view(out.data(), c.extents));
    CHECK(out == expected);

    loop.start(noise);
    while (loop.step() < 2) step();
    step();
    static_cast<void>(loop.next_request(noise));
    CHECK_THROWS_WITH(loop.advance(), ContainsSubstring("pass a noise source"));
    // Some of the batch's steps may have been done.
    CHECK_THROWS_WITH(loop.next_request(noise), ContainsSubstring("call start first"));
    loop.start(noise);
    loop.run(noise);
    loop.collect(make_view(out.data(), c.extents));
    CHECK(out == expected);
}

TEST_CASE("steppers are told when nothing was asked") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 6), 5};
    counted_form model{4};
    loop::batch_step batch(model, c.schedule, plan_of(c, 2, 2, loop::reuse::newest, false));
    loop::serial serial(model, c.schedule, c.extents);
    const auto check = [&](auto& loop) {
        CHECK_THROWS_WITH(loop.advance(), ContainsSubstring("call next_request first"));
        loop.start(philox_noise(1));
        latent z(c.extents);
        CHECK_THROWS_WITH(loop.supply(std::as_const(z).view()),
                          ContainsSubstring("call next_request first"));
        loop.run(philox_noise(1));
        CHECK_THROWS_WITH(loop.advance(), ContainsSubstring("call next_request first"));
        CHECK_THROWS_WITH(loop.next_request(), ContainsSubstring("start again"));
        // After the last step it is too late to stop.
        loop.start(philox_noise(1));
        CHECK(loop.run(philox_noise(1), [&](index_t i) { return i < 5; }));
        // One that was refused is no start, nor are the steps before it of any use.
        latent small({1, 2, 3, 4, 5});
        CHECK_THROWS_AS(loop.start(std::as_const(small).view()), usage_error);
        CHECK_THROWS_WITH(loop.next_request(), ContainsSubstring("call start first"));
    };
    check(batch);
    check(serial);
}

// SPDX-License-Identifier: Apache-2.0
// ParaStep on thread ranks: against its recordings, against serial, against its plan.
#include <latpar/comm/mesh.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>
#include <latpar/step/latent_parallel.hpp>

#include <loop/para_step_reference.hpp>
#include <support/all_schedules.hpp>
#include <support/catch.hpp>
#include <support/closed_form.hpp>
#include <support/expect.hpp>
#include <support/messages_of.hpp>
#include <support/own_stream.hpp>
#include <support/para_step_run.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>

using namespace latpar;

namespace {

constexpr std::array histories{loop::history::official, loop::history::shared};
constexpr std::array reuses{loop::reuse::own, loop::reuse::newest, loop::reuse::extrapolated};
constexpr closed_form guided_form{0.7f, -0.3f, 4.0f};

std::vector<para_step_report> on_threads(const loop::para_step_plan& plan, const any_model& model,
                                         const sampling_case& c) {
    std::vector<para_step_report> out(static_cast<std::size_t>(plan.ranks));
    thread_team(plan.ranks).run([&](thread_communicator& comm) {
        any_model own = model;
        out[static_cast<std::size_t>(comm.rank())] = sample_in_rounds(comm, plan, own, c);
    });
    return out;
}

para_step_report simulated(loop::para_step_options options, int degree, any_model model,
                           const sampling_case& c) {
    options.degree = degree;
    self_communicator comm;
    return sample_in_rounds(comm, plan_para_step(c.problem(), options, 1), model, c);
}

bool bitwise_equal(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Knows the timestep, not the latent.
void blind(const_latent_view, const step_info& info, latent_view prediction, stream_ref) {
    float* out = prediction.as<float>();
    for (index_t k = 0; k < prediction.elements(); ++k) {
        out[k] = static_cast<float>(0.3 - info.samples[0].timestep / 2000 +
                                    0.01 * static_cast<double>(k % 7));
    }
}

}  // namespace

TEST_CASE("the recorded runs of the public code come out, simulated and on threads") {
    const recorded_para_step recorded;
    for (const recorded_rounds& run : recorded_para_step::runs()) {
        const sampling_case c = recorded.initial(run);
        loop::para_step_options options;
        options.warm_up = run.warm_up;
        options.history = loop::history::official;
        options.reuse = loop::reuse::own;
        CAPTURE(run.key());
        const auto alone = simulated(options, run.degree, guided_form, c);
        CHECK(recorded.distance(run, alone.latent) < 2e-5);
        bool equal = true;
        for (const auto& report :
             on_threads(plan_para_step(c.problem(), options, run.degree), guided_form, c)) {
            equal = equal && bitwise_equal(report.latent, alone.latent);
        }
        CHECK(equal);
    }
}

TEST_CASE("one step a round, or a warm-up of all steps, is the serial run, bitwise") {
    for (const linear_scheduler& scheduler : all_schedules(7)) {
        const sampling_case c{{2, 2, 3, 4, 6}, scheduler, 3};
        const auto serial = sample_serially(guided_form, c);
        CAPTURE(scheduler.name());
        for (const loop::history history : histories) {
            for (const loop::reuse reuse : reuses) {
                loop::para_step_options options;
                options.history = history;
                options.reuse = reuse;
                options.warm_up = 2;
                CHECK(bitwise_equal(simulated(options, 1, guided_form, c).latent, serial));
                options.warm_up = 7;
                CHECK(bitwise_equal(simulated(options, 3, guided_form, c).latent, serial));
                for (const auto& report :
                     on_threads(plan_para_step(c.problem(), options, 3), guided_form, c)) {
                    CHECK(bitwise_equal(report.latent, serial));
                    CHECK(report.sent_and_received == traffic{});
                }
            }
        }
    }
}

TEST_CASE("a model that does not see the latent gives the serial result for every degree") {
    for (const linear_scheduler& scheduler : all_schedules(9)) {
        const sampling_case c{{1, 2, 3, 4, 6}, scheduler, 3};
        const auto serial = sample_serially(blind, c);
        CAPTURE(scheduler.name());
        for (const loop::history history : histories) {
            for (const loop::reuse reuse : reuses) {
                for (const int degree : {2, 3, 4, 5}) {
                    loop::para_step_options options;
                    options.history = history;
                    options.reuse = reuse;
                    options.warm_up = 2;
                    CHECK(bitwise_equal(simulated(options, degree, blind, c).latent, serial));
                }
            }
        }
    }
}

TEST_CASE("threads give the bits of the simulation; bytes, calls and memory are as planned") {
    std::mt19937 random(7);
    const auto draw = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    };
    for (int trial = 0; trial < 120; ++trial) {
        const auto schedules = all_schedules(draw(2, 12));
        const sampling_case c{{draw(1, 2), draw(1, 3), draw(1, 4), draw(1, 6), draw(2, 6)},
                              schedules[static_cast<std::size_t>(draw(0, 6))],
                              static_cast<std::uint64_t>(draw(0, 999))};
        const int ranks = draw(1, 6);
        latent_problem problem = c.problem();
        if (draw(0, 3) == 0) problem.type = draw(0, 1) ? dtype::bf16 : dtype::f16;
        loop::para_step_options options;
        options.warm_up = draw(1, static_cast<int>(c.schedule.steps()));
        options.history = histories[static_cast<std::size_t>(draw(0, 1))];
        options.reuse = reuses[static_cast<std::size_t>(draw(0, 2))];
        options.wire_prediction = draw(0, 2) == 0 ? dtype::bf16 : dtype::f32;
        options.wire_state = draw(0, 2) == 0 ? dtype::f16 : dtype::f32;
        options.result_everywhere = draw(0, 1) == 1;
        CAPTURE(trial, ranks, c.schedule.name(), c.schedule.steps(), options.warm_up,
                name_of(options.history), name_of(options.reuse), name_of(options.wire_prediction),
                name_of(options.wire_state), options.result_everywhere);
        const auto plan = plan_para_step(problem, options, ranks);
        // The closed form computes in float32.
        const any_model form = [](const_latent_view z, const step_info& info, latent_view p,
                                  stream_ref s) {
            latent wide(z.extents);
            latent out(p.extents);
            kernel::host{}.copy(z, wide.view());
            guided_form(wide.view(), info, out.view(), s);
            kernel::host{}.copy(std::as_const(out).view(), p);
        };
        self_communicator self;
        options.degree = ranks;
        any_model one = form;
        const auto alone = sample_in_rounds(self, plan_para_step(problem, options, 1), one, c);
        const auto reports = on_threads(plan, form, c);
        index_t bytes = 0;
        index_t calls = 0;
        for (int rank = 0; rank < ranks; ++rank) {
            const auto& report = reports[static_cast<std::size_t>(rank)];
            if (rank == 0 || options.result_everywhere) {
                CHECK(bitwise_equal(report.latent, alone.latent));
            }
            CHECK(report.sent_and_received.bytes_sent == plan.bytes_sent_by(rank));
            CHECK(report.sent_and_received.bytes_received == plan.bytes_received_by(rank));
            CHECK(report.calls == plan.calls_by(rank));
            CHECK(report.called_steps == plan.steps_of(rank));
            CHECK(report.late_allocations == 0);
            CHECK(report.loop_bytes == plan.workspace_bytes(rank));
            bytes += report.sent_and_received.bytes_sent;
            calls += report.calls;
        }
        CHECK(bytes == plan.bytes());
        CHECK(calls == plan.denoiser_calls());
        const auto most =
            std::max_element(reports.begin(), reports.end(),
                             [](const auto& a, const auto& b) { return a.calls < b.calls; });
        CHECK(most->calls == plan.critical_path_calls());
    }
}

TEST_CASE("with a shared history every rank's state is equal to the bit after each round") {
    for (const linear_scheduler& scheduler : all_schedules(11)) {
        const sampling_case c{{1, 2, 3, 4, 6}, scheduler, 5};
        for (const dtype wire : {dtype::f32, dtype::bf16}) {
            loop::para_step_options options;
            options.warm_up = 2;
            options.wire_state = wire;
            const auto reports =
                on_threads(plan_para_step(c.problem(), options, 4), guided_form, c);
            CAPTURE(scheduler.name(), name_of(wire));
            CHECK(reports[0].states.size() == 2);
            for (const auto& report : reports) {
                CHECK(report.states == reports[0].states);
            }
        }
    }
}

TEST_CASE("with the official history the states of multistep schedulers drift apart") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("unipc_flow", 11), 5};
    loop::para_step_options options;
    options.warm_up = 2;
    options.history = loop::history::official;
    const auto reports = on_threads(plan_para_step(c.problem(), options, 4), guided_form, c);
    CHECK(reports[1].states != reports[0].states);
    const auto shared = [&] {
        options.history = loop::history::shared;
        return simulated(options, 4, guided_form, c).latent;
    }();
    CHECK_FALSE(bitwise_equal(reports[0].latent, shared));
}

TEST_CASE("own and newest are the same for two ranks") {
    for (const linear_scheduler& scheduler : all_schedules(9)) {
        const sampling_case c{{1, 2, 3, 4, 6}, scheduler, 5};
        loop::para_step_options options;
        options.warm_up = 2;
        options.reuse = loop::reuse::own;
        const auto own = simulated(options, 2, guided_form, c).latent;
        options.reuse = loop::reuse::newest;
        CHECK(bitwise_equal(simulated(options, 2, guided_form, c).latent, own));
        const auto newest = simulated(options, 3, guided_form, c).latent;
        options.reuse = loop::reuse::own;
        CHECK_FALSE(bitwise_equal(simulated(options, 3, guided_form, c).latent, newest));
    }
}

TEST_CASE("a run that is stopped has sent what its rounds planned, and can go on") {
    const sampling_case whole{{1, 2, 3, 4, 6}, schedule::by_name("unipc_flow", 12), 5};
    sampling_case stopped = whole;
    stopped.stop_after = 8;
    loop::para_step_options options;
    options.warm_up = 2;
    const auto plan = plan_para_step(whole.problem(), options, 3);
    const auto expected = simulated(options, 3, guided_form, stopped);
    index_t sent = 0;
    for (const auto& report : on_threads(plan, guided_form, stopped)) {
        sent += report.sent_and_received.bytes_sent;
        CHECK(bitwise_equal(report.latent, expected.latent));
    }
    CHECK(sent == plan.bytes_after(2));

    const auto uninterrupted = simulated(options, 3, guided_form, whole).latent;
    thread_team(3).run([&](thread_communicator& comm) {
        any_model model = guided_form;
        loop::para_step loop(model, comm, whole.schedule, plan);
        const philox_noise noise(whole.seed);
        loop.start(noise);
        EXPECT(!loop.run(noise, [&](index_t i) { return i != 4 || comm.rank() != 1; }));
        EXPECT(loop.step() == 5);
        EXPECT(loop.run(noise, [](index_t) { return true; }));
        std::vector<float> out(uninterrupted.size());
        loop.collect(make_view(out.data(), whole.extents));
        EXPECT(bitwise_equal(out, uninterrupted));
    });
}

TEST_CASE("a run may be stopped after any step or round, and collected, and go on") {
    for (int ranks = 2; ranks <= 5; ++ranks) {
        const sampling_case whole{{1, 1, 2, 3, 4}, schedule::by_name("unipc_flow", 9), 5};
        loop::para_step_options options;
        options.warm_up = 2;
        const auto plan = plan_para_step(whole.problem(), options, ranks);
        const auto expected = simulated(options, ranks, guided_form, whole).latent;
        std::vector<index_t> ends{0, 1};
        for (const auto& round : plan.rounds) ends.push_back(round.first + round.count - 1);
        for (const index_t end : ends) {
            thread_team(ranks).run([&](thread_communicator& comm) {
                any_model model = guided_form;
                loop::para_step loop(model, comm, whole.schedule, plan);
                const philox_noise noise(whole.seed);
                loop.start(noise);
                const bool finished = loop.run(noise, [&](index_t i) { return i != end; });
                EXPECT(finished == (end == 8));
                std::vector<float> preview(expected.size());
                loop.collect(make_view(preview.data(), whole.extents));
                EXPECT(bitwise_equal(preview, expected) == finished);
                EXPECT(loop.run(noise, [](index_t) { return true; }));
                for (int times = 0; times < 2; ++times) {
                    std::vector<float> out(expected.size());
                    loop.collect(make_view(out.data(), whole.extents));
                    EXPECT(bitwise_equal(out, expected));
                }
                loop.start(noise);
                loop.run(noise);
                std::vector<float> again(expected.size());
                loop.collect(make_view(again.data(), whole.extents));
                EXPECT(bitwise_equal(again, expected));
            });
        }
    }
}

TEST_CASE("one rank alone may have the callback, and stop all of them") {
    const sampling_case whole{{1, 1, 2, 3, 4}, schedule::by_name("euler_flow", 9), 5};
    loop::para_step_options options;
    options.warm_up = 2;
    for (int with = 0; with < 3; ++with) {
        thread_team(3).run([&](thread_communicator& comm) {
            any_model model = guided_form;
            loop::para_step loop(model, comm, whole.schedule,
                                 plan_para_step(whole.problem(), options, 3));
            const philox_noise noise(whole.seed);
            loop.start(noise);
            if (comm.rank() == with) {
                EXPECT(!loop.run(noise, [](index_t i) { return i < 4; }));
            } else {
                loop.run(noise);
            }
            EXPECT(loop.step() == 5);
        });
    }
}

TEST_CASE("schedules that repeat a timestep are extrapolated without a division by zero") {
    const sampling_case c{{1, 1, 2, 3, 4}, schedule::by_name("unipc_flow", 400), 5};
    loop::para_step_options options;
    options.reuse = loop::reuse::extrapolated;
    for (const float x : simulated(options, 3, guided_form, c).latent) REQUIRE(std::isfinite(x));
}

TEST_CASE("an engine that owns its loop gets the same bits from the stepper") {
    for (const linear_scheduler& scheduler : all_schedules(10)) {
        const sampling_case c{{2, 2, 3, 4, 6}, scheduler, 5};
        loop::para_step_options options;
        options.warm_up = 3;
        const auto plan = plan_para_step(c.problem(), options, 4);
        const auto expected = simulated(options, 4, guided_form, c).latent;
        thread_team(4).run([&](thread_communicator& comm) {
            any_model model = guided_form;
            loop::para_step loop(model, comm, c.schedule, plan);
            const philox_noise noise(c.seed);
            loop.start(noise);
            latent elsewhere(c.extents);
            index_t calls = 0;
            while (!loop.done()) {
                const auto next = loop.next_request(noise);
                EXPECT(next.info.samples.size() == 2);
                model(next.z, next.info, elsewhere.view(), {});
                loop.supply(elsewhere.view());
                loop.advance(noise);
                ++calls;
            }
            EXPECT(calls == plan.calls_by(comm.rank()));
            std::vector<float> out(expected.size());
            loop.collect(make_view(out.data(), c.extents));
            EXPECT(bitwise_equal(out, expected));
        });
    }
}

namespace {

/// A communicator that watches each send until it is done, before the program goes on.
class watched {
public:
    watched(thread_communicator inner, std::atomic<index_t>& done)
        : inner_(std::move(inner)), done_(&done) {}

    [[nodiscard]] int rank() const noexcept { return inner_.rank(); }
    [[nodiscard]] int size() const noexcept { return inner_.size(); }
    [[nodiscard]] bool reaches(memory_space space) const noexcept { return inner_.reaches(space); }
    [[nodiscard]] auto start_exchange(std::span<const send_op> sends,
                                      std::span<const recv_op> recvs, stream_ref stream = {}) {
        auto request = inner_.start_exchange(sends, recvs, stream);
        if (rank() > 0 && !sends.empty()) {
            const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(20);
            if (request.wait_until(patience)) ++*done_;
        }
        return request;
    }
    [[nodiscard]] std::optional<watched> split(int color, int key) {
        auto part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return watched(std::move(*part), *done_);
    }
    [[nodiscard]] watched duplicate() { return {inner_.duplicate(), *done_}; }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

private:
    thread_communicator inner_;
    std::atomic<index_t>* done_;
};
static_assert(communicator<watched>);

}  // namespace

TEST_CASE("receives are posted before rank 0's own call, and sends do not wait for it") {
    const sampling_case c{{1, 1, 2, 3, 4}, schedule::by_name("euler_flow", 10), 5};
    loop::para_step_options options;
    options.warm_up = 1;
    options.reuse = loop::reuse::own;  // so that nothing else is sent
    std::atomic<index_t> sent = 0;
    index_t expected = 0;
    bool in_time = true;
    thread_team(3).run([&](thread_communicator& comm) {
        // Rank 0's call of a round ends only when both other predictions have arrived.
        any_model model = [&](const_latent_view z, const step_info& info, latent_view p,
                              stream_ref s) {
            guided_form(z, info, p, s);
            if (comm.rank() > 0 || info.samples[0].step == 0) return;
            expected += 2;
            const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(10);
            while (sent < expected && in_time) {
                in_time = std::chrono::steady_clock::now() < patience;
                std::this_thread::yield();
            }
        };
        watched ranks(comm.duplicate(), sent);
        loop::para_step loop(model, ranks, c.schedule, plan_para_step(c.problem(), options, 3));
        const philox_noise noise(1);
        loop.start(noise);
        loop.run(noise, own_stream{});
    });
    CHECK(in_time);
    CHECK(sent == 6);
}

TEST_CASE("bad options name the value and the remedy") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 6), 5};
    const auto refused = [&](auto&& change, int ranks, const std::string& text) {
        loop::para_step_options options;
        options.warm_up = 2;
        latent_problem problem = c.problem();
        change(options, problem);
        CAPTURE(text);
        CHECK_THROWS_WITH(plan_para_step(problem, options, ranks), ContainsSubstring(text));
    };
    refused([](auto& o, auto&) { o.warm_up = 0; }, 2, "a warm-up of 0 steps");
    refused([](auto& o, auto&) { o.warm_up = 7; }, 2, "use 1 to 6");
    refused([](auto& o, auto&) { o.degree = 3; }, 2, "cannot be spread on 2 ranks");
    refused([](auto& o, auto&) { o.degree = -3; }, 2, "rounds of -3 steps");
    refused([](auto&, auto&) {}, 0, "0 ranks");
    refused([](auto&, auto& p) { p.prediction_channels = 4; }, 2, "4 channels");
    refused([](auto& o, auto&) { o.wire_state = dtype::u8; }, 2, "use f32, bf16 or f16");
    refused([](auto& o, auto&) { o.held = box_of({9, 4, 6}); }, 2, "held box");
    refused([](auto&, auto& p) { p.steps = 0; }, 2, "0 denoising steps");
}

TEST_CASE("ranks that were refused a plan may go on with another") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 6), 5};
    loop::para_step_options options;
    options.warm_up = 2;
    const auto expected = simulated(options, 3, guided_form, c).latent;
    thread_team(3).run([&](thread_communicator& comm) {
        any_model model = guided_form;
        const auto construct = [&](index_t warm_up) {
            auto mine = options;
            mine.warm_up = warm_up;
            return loop::para_step(model, comm, c.schedule, plan_para_step(c.problem(), mine, 3));
        };
        expect_throws([&] { construct(comm.rank() == 2 ? 3 : 2); }, "the ParaStep plan");
        auto loop = construct(2);
        const philox_noise noise(c.seed);
        loop.start(noise);
        loop.run(noise);
        std::vector<float> out(expected.size());
        loop.collect(make_view(out.data(), c.extents));
        EXPECT(bitwise_equal(out, expected));
    });
}

TEST_CASE("plans, schedules and noise that differ are refused on every rank") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 6), 5};
    loop::para_step_options options;
    options.warm_up = 2;
    for (const std::string& text : messages_of(3, [&](thread_communicator& comm) {
             auto mine = options;
             if (comm.rank() == 2) mine.warm_up = 3;
             any_model model = guided_form;
             loop::para_step loop(model, comm, c.schedule, plan_para_step(c.problem(), mine, 3));
         })) {
        CHECK_THAT(text, ContainsSubstring("the ParaStep plan"));
    }
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             any_model model = guided_form;
             loop::para_step loop(model, comm, schedule::by_name("ddim_v", 6),
                                  plan_para_step(c.problem(), options, 2));
             loop.start(philox_noise(static_cast<std::uint64_t>(comm.rank())));
         })) {
        CHECK_THAT(text, ContainsSubstring("noise source"));
    }
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             any_model model = guided_form;
             loop::para_step loop(model, comm, schedule::by_name("unipc_flow", 6),
                                  plan_para_step(c.problem(), options, 2));
         })) {
        CHECK_THAT(text, ContainsSubstring("plan with latent_problem::of"));
    }
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             any_model model = guided_form;
             loop::para_step loop(model, comm, c.schedule, plan_para_step(c.problem(), options, 3));
         })) {
        CHECK_THAT(text, ContainsSubstring("planned for 3 ranks"));
    }
}

TEST_CASE("what one rank does wrong reaches all") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 9), 5};
    loop::para_step_options options;
    options.warm_up = 2;
    const auto plan = plan_para_step(c.problem(), options, 2);
    // A latent of other extents.
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             any_model model = guided_form;
             loop::para_step loop(model, comm, c.schedule, plan);
             latent z(comm.rank() == 1 ? std::array<index_t, 5>{1, 2, 3, 4, 5} : c.extents);
             std::fill_n(z.elements<float>().begin(), z.elements<float>().size(), 0.5f);
             loop.start(std::as_const(z).view());
             loop.run(philox_noise(1));
         })) {
        CHECK_THAT(text, ContainsSubstring("other extents"));
    }
    // A loop that is dropped in a round, and one whose engine gives up.
    for (const bool dropped : {true, false}) {
        const auto messages = messages_of(2, [&](thread_communicator& comm) {
            any_model model = guided_form;
            loop::para_step loop(model, comm, c.schedule, plan);
            loop.start(philox_noise(1));
            while (!loop.done()) {
                const auto next = loop.next_request();
                if (comm.rank() == 1 && loop.step() == 4) {
                    if (!dropped) loop.abort("the engine gave up");
                    return;
                }
                model(next.z, next.info, next.prediction, {});
                loop.advance();
            }
        });
        CHECK_THAT(messages[0], ContainsSubstring(dropped ? "destroyed in a round" : "gave up"));
    }
    // Options that differ between ranks of the model.
    const mesh_shape shape{{"step", 2}, {"latent", 2}};
    for (const std::string& text : messages_of(4, [&](thread_communicator& world) {
             mesh<thread_communicator> axes(world, shape);
             latent_parallel_options latent;
             latent.layout = latent_layout::replicated;
             latent_parallel model(guided_form, axes.axis("latent"),
                                   plan_latent_parallel(c.problem(), latent, 2));
             loop::para_step_options mine = options;
             if (axes.coordinate("latent") == 1) mine.warm_up = 4;
             loop::para_step loop(model, axes.axis("step"), c.schedule,
                                  plan_para_step(c.problem(), mine, 2));
         })) {
        CHECK_THAT(text, ContainsSubstring("warm-up=4"));
    }
    // A model that was planned for fewer steps.
    for (const std::string& text : messages_of(2, [&](thread_communicator& comm) {
             self_communicator alone;
             latent_parallel_options latent;
             latent.layout = latent_layout::sharded;
             latent.parts = 2;
             latent.overlap = 0;
             const sampling_case fewer{c.extents, schedule::by_name("euler_flow", 4), 5};
             latent_parallel model(guided_form, alone,
                                   plan_latent_parallel(fewer.problem(), latent, 1));
             loop::para_step loop(model, comm, c.schedule, plan);
         })) {
        CHECK_THAT(text, ContainsSubstring("in 4 steps"));
    }
}

TEST_CASE("a stepper is told when nothing was asked, and a simulation may start again") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 9), 5};
    loop::para_step_options options;
    options.warm_up = 2;
    options.degree = 3;
    self_communicator alone;
    any_model model = guided_form;
    loop::para_step loop(model, alone, c.schedule, plan_para_step(c.problem(), options, 1));
    CHECK_THROWS_WITH(loop.advance(), ContainsSubstring("call next_request first"));
    CHECK_THROWS_WITH(loop.next_request(), ContainsSubstring("call start"));
    loop.start(philox_noise(1));
    for (int calls = 0; calls < 3; ++calls) {
        const auto next = loop.next_request();
        model(next.z, next.info, next.prediction, {});
        loop.advance();
    }
    CHECK_THROWS_WITH(loop.advance(), ContainsSubstring("call next_request first"));
    loop.start(philox_noise(c.seed));
    loop.run(philox_noise(c.seed));
    std::vector<float> out(simulated(options, 3, guided_form, c).latent.size());
    loop.collect(make_view(out.data(), c.extents));
    CHECK(bitwise_equal(out, simulated(options, 3, guided_form, c).latent));
    // One that was refused is no start.
    latent small({1, 2, 3, 4, 5});
    CHECK_THROWS_AS(loop.start(std::as_const(small).view()), usage_error);
    CHECK_THROWS_WITH(loop.next_request(), ContainsSubstring("call start first"));
}

TEST_CASE("a model that throws on one rank stops the others, with its message") {
    const sampling_case c{{1, 2, 3, 4, 6}, schedule::by_name("euler_flow", 9), 5};
    loop::para_step_options options;
    options.warm_up = 2;
    for (int thrower = 0; thrower < 3; ++thrower) {
        const auto messages = messages_of(3, [&](thread_communicator& comm) {
            any_model model = [&](const_latent_view z, const step_info& info, latent_view p,
                                  stream_ref s) {
                if (comm.rank() == thrower && info.samples[0].step >= 3)
                    throw std::runtime_error("no memory left");
                guided_form(z, info, p, s);
            };
            loop::para_step loop(model, comm, c.schedule, plan_para_step(c.problem(), options, 3));
            const philox_noise noise(1);
            loop.start(noise);
            loop.run(noise);
        });
        for (const std::string& text : messages) CHECK_THAT(text, ContainsSubstring("no memory"));
    }
}

TEST_CASE("the plan counts calls as the paper does") {
    for (index_t steps = 1; steps <= 24; ++steps) {
        const sampling_case c{{1, 1, 1, 2, 2}, schedule::by_name("euler_flow", steps), 5};
        for (index_t warm_up = 1; warm_up <= steps; ++warm_up) {
            for (int p = 1; p <= 6; ++p) {
                loop::para_step_options options;
                options.warm_up = warm_up;
                const auto plan = plan_para_step(c.problem(), options, p);
                index_t next = warm_up;
                for (const auto& round : plan.rounds) {
                    REQUIRE(round.first == next);
                    REQUIRE(round.count >= 1);
                    REQUIRE(round.count <= p);
                    next += round.count;
                }
                REQUIRE(next == steps);
                REQUIRE(plan.critical_path_calls() == warm_up + (steps - warm_up + p - 1) / p);
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
// Nested policies on thread ranks: against their simulation on one rank, against their plan.
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>
#include <latpar/step/guided.hpp>

#include <support/all_schedules.hpp>
#include <support/catch.hpp>
#include <support/closed_form.hpp>
#include <support/composition_run.hpp>
#include <support/expect.hpp>
#include <support/in_order_communicator.hpp>
#include <support/logged_communicator.hpp>
#include <support/messages_of.hpp>

#include <algorithm>
#include <functional>
#include <random>
#include <string>

using namespace latpar;

namespace {

constexpr closed_form form{0.7f, -0.3f, 1.0f};

std::vector<composition_report> on_threads(const composition_plan& plan, const any_model& model,
                                           const sampling_case& c) {
    std::vector<composition_report> out(static_cast<std::size_t>(plan.ranks));
    thread_team(plan.ranks).run([&](thread_communicator& comm) {
        out[static_cast<std::size_t>(comm.rank())] = sample_composed(comm, plan, model, c);
    });
    return out;
}

std::vector<float> simulated(const sampling_case& c, const mesh_shape& shape,
                             composition_options options, const any_model& model) {
    options.simulate = true;
    self_communicator alone;
    return sample_composed(alone, plan_composition(c.problem(), shape, options), model, c).latent;
}

composition_options some_options() {
    composition_options out;
    out.guidance.rule = guidance_rule::classifier_free(4.0);
    out.step.warm_up = 2;
    return out;
}

/// Runs on threads what `plan` says and compares with the simulation, bytes, calls and memory.
void check(const sampling_case& c, const mesh_shape& shape, const composition_options& options) {
    CAPTURE(c.schedule.name(), to_string(shape), name_of(options.latent.layout),
            name_of(options.latent.wire_prediction), name_of(options.step.wire_state),
            name_of(options.guidance.wire_prediction), options.result_everywhere);
    const auto plan = plan_composition(c.problem(), shape, options);
    const auto expected = simulated(c, shape, options, form);
    const auto reports = on_threads(plan, form, c);
    index_t total = 0;
    for (int rank = 0; rank < plan.ranks; ++rank) {
        const auto& report = reports[static_cast<std::size_t>(rank)];
        if (rank == 0 || options.result_everywhere) CHECK(report.latent == expected);
        for (const auto& [axis, sent] : report.sent) {
            CAPTURE(axis, rank);
            CHECK(sent == plan.bytes_sent_by(rank, axis));
            total += sent;
        }
        CHECK(report.model_calls == plan.model_calls_by(rank));
        CHECK(report.late_allocations == 0);
        CHECK(report.taken_bytes == plan.workspace_bytes(rank));
    }
    CHECK(total == plan.bytes());
}

}  // namespace

TEST_CASE("every pair of axes, and all three, give the bits of their simulation on one rank") {
    const std::vector<mesh_shape> shapes{
        {{"step", 2}, {"guidance", 2}},   {{"step", 2}, {"latent", 2}},
        {{"guidance", 2}, {"latent", 2}}, {{"step", 2}, {"guidance", 2}, {"latent", 2}},
        {{"step", 3}, {"latent", 2}},
    };
    for (const linear_scheduler& scheduler : all_schedules(8)) {
        const sampling_case c{{1, 3, 4, 6, 8}, scheduler, 5};
        for (const mesh_shape& shape : shapes) check(c, shape, some_options());
    }
}

TEST_CASE("the central layout nests in rounds, and every layout nests in serial steps") {
    for (const linear_scheduler& scheduler : all_schedules(7)) {
        const sampling_case c{{1, 3, 4, 6, 8}, scheduler, 5};
        composition_options options = some_options();
        options.latent.layout = latent_layout::central;
        check(c, {{"step", 2}, {"guidance", 2}, {"latent", 2}}, options);
        for (const latent_layout layout :
             {latent_layout::central, latent_layout::replicated, latent_layout::sharded}) {
            options.latent.layout = layout;
            check(c, {{"guidance", 2}, {"latent", 3}}, options);
        }
    }
}

TEST_CASE("exchanges that are done in order change no bit of any nest") {
    const sampling_case c{{1, 3, 8, 10, 12}, schedule::by_name("unipc_flow", 9), 5};
    composition_options options = some_options();
    const auto check_in_order = [&](const mesh_shape& shape) {
        CAPTURE(to_string(shape), name_of(options.latent.layout), name_of(options.step.reuse));
        const auto plan = plan_composition(c.problem(), shape, options);
        std::vector<float> found;
        thread_team(plan.ranks).run([&](thread_communicator& world) {
            in_order_communicator<thread_communicator> comm(world.duplicate());
            auto report = sample_composed(comm, plan, form, c);
            if (world.rank() == 0) found = std::move(report.latent);
        });
        CHECK(found == simulated(c, shape, options, form));
    };
    for (const loop::reuse reuse :
         {loop::reuse::own, loop::reuse::newest, loop::reuse::extrapolated}) {
        options.step.reuse = reuse;
        for (const int steps : {2, 3, 5}) check_in_order({{"step", steps}});
    }
    for (const latent_layout layout :
         {latent_layout::central, latent_layout::replicated, latent_layout::sharded}) {
        options.latent.layout = layout;
        for (const int latents : {2, 3, 4}) check_in_order({{"latent", latents}});
        check_in_order({{"guidance", 2}, {"latent", 3}});
        if (layout == latent_layout::sharded) continue;
        check_in_order({{"step", 3}, {"guidance", 2}, {"latent", 2}});
    }
}

TEST_CASE("rounds, branches and parts wait for their messages on the host") {
    // Where the next call of the model cannot be queued behind a peer that has failed.
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 7), 5};
    for (const latent_layout layout :
         {latent_layout::central, latent_layout::replicated, latent_layout::sharded}) {
        const bool has_rounds = layout != latent_layout::sharded;
        composition_options options = some_options();
        options.latent.layout = layout;
        const auto plan = plan_composition(
            c.problem(), {{"step", has_rounds ? 2 : 1}, {"guidance", 2}, {"latent", 2}}, options);
        thread_team(plan.ranks).run([&](thread_communicator& world) {
            call_log log;
            logged_communicator comm(world.duplicate(), log);
            static_cast<void>(sample_composed(comm, plan, form, c));
            EXPECT(std::ranges::count(log.calls, "wait") == 0);
            EXPECT(std::ranges::count(log.calls, "wait on the host") > 7);
        });
    }
}

TEST_CASE("axes of one rank cost nothing") {
    const sampling_case c{{2, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 7), 5};
    composition_options options = some_options();
    const auto plan = plan_composition(c.problem(), {}, options);
    CHECK(plan.bytes() == 0);
    CHECK(plan.critical_path_calls() == 7);
    CHECK(plan.critical_path_evaluations() == 14);
    CHECK(plan.speed_up_ceiling() == 1.0);
    guided<closed_form> alone(form, 4.0);
    const auto serial = run_loop(alone, c, true);
    CHECK(on_threads(plan, form, c)[0].latent == serial);
    check(c, {{"guidance", 2}}, options);
    CHECK(simulated(c, {{"guidance", 2}}, options, form) == serial);
}

TEST_CASE("random nests: bits, bytes, calls and memory are as planned") {
    std::mt19937 random(11);
    const auto draw = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    };
    const auto wire = [&] {
        return std::array{dtype::f32, dtype::f32, dtype::bf16, dtype::f16}[std::size_t(draw(0, 3))];
    };
    for (int trial = 0; trial < 60; ++trial) {
        const auto schedules = all_schedules(draw(3, 9));
        const sampling_case c{{draw(1, 2), draw(1, 3), draw(2, 5), 2 * draw(2, 4), 2 * draw(2, 4)},
                              schedules[std::size_t(draw(0, 6))],
                              std::uint64_t(draw(0, 999))};
        const int branches = draw(2, 3);
        composition_options options;
        options.guidance.rule =
            branches == 2
                ? guidance_rule::classifier_free(3.0)
                : guidance_rule::of({guidance_branch::unconditional, guidance_branch::guided,
                                     guidance_branch::conditional},
                                    {{-1, 0.5, 1.5}});
        const int steps = draw(1, 3);
        const int latents = draw(1, 3);
        options.step.warm_up = draw(1, 3);
        options.step.history = draw(0, 1) ? loop::history::official : loop::history::shared;
        options.step.reuse = std::array{loop::reuse::own, loop::reuse::newest,
                                        loop::reuse::extrapolated}[std::size_t(draw(0, 2))];
        options.step.wire_prediction = wire();
        options.step.wire_state = wire();
        options.guidance.wire_prediction = wire();
        options.latent.wire_prediction = wire();
        options.latent.wire_state = wire();
        options.latent.overlap = latents == 1 ? 0.0 : draw(0, 2) / 2.0;
        options.latent.layout =
            std::array{latent_layout::central, latent_layout::replicated, latent_layout::sharded,
                       latent_layout::automatic}[std::size_t(draw(0, 3))];
        if (steps > 1 && options.latent.layout == latent_layout::sharded) {
            options.latent.layout = latent_layout::automatic;
        }
        // Only f32 on the wire is the same in every layout, and automatic is resolved by ranks.
        if (options.latent.layout == latent_layout::automatic) {
            options.latent.wire_prediction = options.latent.wire_state = dtype::f32;
        }
        options.result_everywhere = draw(0, 1) == 1;
        check(c, {{"step", steps}, {"guidance", draw(1, branches)}, {"latent", latents}}, options);
    }
}

TEST_CASE("guidance inside the cut gives the bits of guided inside the cut") {
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 7), 5};
    latent_parallel_options options;
    for (const latent_layout layout :
         {latent_layout::central, latent_layout::replicated, latent_layout::sharded}) {
        options.layout = layout;
        const auto plan = plan_latent_parallel(c.problem(), options, 2);
        std::vector<std::vector<float>> results(4);
        const mesh_shape shape{{"guidance", 2}, {"latent", 2}};
        thread_team(4).run([&](thread_communicator& world) {
            mesh<thread_communicator> axes(world, shape);
            guidance_parallel_options guidance{guidance_rule::classifier_free(4.0)};
            for (index_t i = 0; i < 7; ++i) {
                guidance.predicted.push_back(
                    plan.cut_of(i).parts[std::size_t(axes.coordinate("latent"))].window);
            }
            latent_parallel policy(
                guidance_parallel(form, axes.axis("guidance"),
                                  plan_guidance_parallel(c.problem(), guidance, 2)),
                axes.axis("latent"), plan);
            results[std::size_t(world.rank())] = run_loop(policy, c, true);
        });
        self_communicator alone;
        latent_parallel_options one = options;
        one.parts = 2;
        latent_parallel expected(guided<closed_form>(form, 4.0), alone,
                                 plan_latent_parallel(c.problem(), one, 1));
        const auto values = run_loop(expected, c, true);
        for (const auto& result : results) CHECK(result == values);
    }
}

TEST_CASE("one rank's word stops all, on every axis, and its seed is compared with all") {
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("euler_flow", 6), 5};
    const auto plan = plan_latent_parallel(c.problem(), {}, 2);
    const auto with_policy = [&](thread_communicator& world, auto use) {
        mesh<thread_communicator> axes(world, {{"guidance", 2}, {"latent", 2}});
        guidance_parallel_options guidance{guidance_rule::classifier_free(4.0)};
        for (index_t i = 0; i < 6; ++i) {
            guidance.predicted.push_back(
                plan.cut_of(i).parts[std::size_t(axes.coordinate("latent"))].window);
        }
        latent_parallel policy(guidance_parallel(form, axes.axis("guidance"),
                                                 plan_guidance_parallel(c.problem(), guidance, 2)),
                               axes.axis("latent"), plan);
        loop::serial loop(policy, c.schedule, c.extents);
        use(loop);
    };
    for (int speaker = 0; speaker < 4; ++speaker) {
        std::array<index_t, 4> steps{};
        thread_team(4).run([&](thread_communicator& world) {
            with_policy(world, [&](auto& loop) {
                const philox_noise noise(1);
                loop.start(noise);
                loop.run(noise, [&](index_t i) { return world.rank() != speaker || i < 2; });
                steps[std::size_t(world.rank())] = loop.step();
            });
        });
        CHECK(steps == std::array<index_t, 4>{3, 3, 3, 3});
    }
    for (int odd = 0; odd < 4; ++odd) {
        for (const std::string& text : messages_of(4, [&](thread_communicator& world) {
                 with_policy(world, [&](auto& loop) {
                     loop.start(philox_noise(world.rank() == odd ? 2 : 1));
                 });
             })) {
            CHECK_THAT(text, ContainsSubstring("philox_noise(2)"));
        }
    }
}

TEST_CASE("the plan of a nest is the sum of its parts") {
    // Wan 2.1 at 480x832, 81 frames.
    const sampling_case c{{1, 16, 21, 60, 104}, schedule::by_name("unipc_flow", 50), 0};
    composition_options options = some_options();
    options.step.warm_up = 5;
    const mesh_shape shape{{"step", 2}, {"guidance", 2}, {"latent", 2}};
    const auto plan = plan_composition(c.problem(), shape, options);
    const index_t prediction = 16 * 21 * 60 * 104 * 4;
    const auto rounds = loop::plan_para_step(c.problem(), options.step, 2);
    CHECK(plan.bytes("step") == 4 * rounds.bytes());
    // Warm-up steps are done by both halves, the others by one; each place on the latent axis
    // sends both branches.
    CHECK(plan.bytes("guidance") == (2 * 5 + 45) * 2 * 2 * prediction);
    CHECK(plan.bytes() == plan.bytes("step") + plan.bytes("guidance") + plan.bytes("latent"));
    CHECK(plan.critical_path_calls() == 5 + 23);
    CHECK(plan.critical_path_evaluations() == 5 + 23);
    CHECK(plan.serial_evaluations() == 100);
    CHECK(plan.model_calls() == (2 * 5 + 45) * 2 * 2);
    const std::string table = to_table(plan);
    for (const char* text : {"mesh step=2,guidance=2,latent=2", "guidance", "ParaStep",
                             "LatentParallel", "28 on the critical path, 50 on one rank"}) {
        CHECK_THAT(table, ContainsSubstring(text));
    }
    CHECK_THAT(table, ContainsSubstring(std::to_string(plan.bytes("guidance"))));
}

TEST_CASE("a simulated nest has the critical path of the real one") {
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 20), 5};
    composition_options options = some_options();
    const mesh_shape shape{{"step", 2}, {"guidance", 2}, {"latent", 2}};
    const auto real = plan_composition(c.problem(), shape, options);
    options.simulate = true;
    const auto simulation = plan_composition(c.problem(), shape, options);
    CHECK(real.critical_path_evaluations() == 2 + 9);
    CHECK(simulation.critical_path_evaluations() == 2 + 9);
    CHECK(simulation.speed_up_ceiling() == real.speed_up_ceiling());
    CHECK(real.speed_up_ceiling() >= 40.0 / 11);
}

TEST_CASE("per-step scales, and an engine that owns the loop of a nest") {
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 8), 5};
    composition_options options = some_options();
    options.guidance.rule = guidance_rule::classifier_free({1, 2, 1, 4, 1, 1, 3, 2});
    const mesh_shape shape{{"step", 2}, {"guidance", 2}, {"latent", 2}};
    check(c, shape, options);
    const auto plan = plan_composition(c.problem(), shape, options);
    const auto expected = simulated(c, shape, options, form);
    thread_team(8).run([&](thread_communicator& world) {
        mesh<thread_communicator> axes(world, shape);
        composition nest(form, axes, c.schedule, plan);
        const philox_noise noise(c.seed);
        nest.start(noise);
        while (!nest.done()) {
            const auto next = nest.next_request(noise);
            nest.policy()(next.z, next.info, next.prediction, {});
            nest.advance(noise);
        }
        std::vector<float> out(expected.size());
        nest.collect(make_view(out.data(), c.extents));
        EXPECT(out == expected);
    });
}

TEST_CASE("nests that differ between ranks, or do not fit the mesh, are refused on all") {
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 7), 5};
    const mesh_shape shape{{"step", 2}, {"guidance", 2}, {"latent", 2}};
    const auto changes = std::vector<std::function<void(composition_options&)>>{
        [](auto& o) { o.guidance.rule = guidance_rule::classifier_free(7.0); },
        [](auto& o) { o.step.warm_up = 3; },
        [](auto& o) { o.latent.overlap = 0; },
        [](auto& o) { o.result_everywhere = false; },
    };
    for (const auto& change : changes) {
        for (const int odd : {0, 3, 6}) {
            const auto messages = messages_of(8, [&](thread_communicator& world) {
                mesh<thread_communicator> axes(world, shape);
                composition_options mine = some_options();
                if (world.rank() == odd) change(mine);
                composition nest(form, axes, c.schedule,
                                 plan_composition(c.problem(), shape, mine));
            });
            for (const std::string& text : messages) {
                CHECK_THAT(text, ContainsSubstring("the composition plan"));
                CHECK(text == messages[0]);
            }
        }
    }
    for (const std::string& text : messages_of(4, [&](thread_communicator& world) {
             mesh<thread_communicator> axes(world, {{"step", 4}});
             composition nest(form, axes, c.schedule,
                              plan_composition(c.problem(), {{"step", 2}}, some_options()));
         })) {
        CHECK_THAT(text, ContainsSubstring("plan for the shape of the mesh"));
    }
    // One rank alone has planned for another mesh.
    for (const std::string& text : messages_of(2, [&](thread_communicator& world) {
             mesh<thread_communicator> axes(world, {{"latent", 2}});
             const mesh_shape mine{{world.rank() == 1 ? "guidance" : "latent", 2}};
             composition nest(form, axes, c.schedule,
                              plan_composition(c.problem(), mine, some_options()));
         })) {
        CHECK_THAT(text, ContainsSubstring("the composition plan"));
    }
}

TEST_CASE("nests of different transformers have different fingerprints") {
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 7), 5};
    const auto of = [&](auto change) {
        composition_options options = some_options();
        options.transformer = layer::transformer_shape{{4, 4, 8, dtype::f32}};
        change(*options.transformer);
        return plan_composition(c.problem(), {{"ulysses", 2}}, options).fingerprint();
    };
    const std::string plain = of([](auto&) {});
    CHECK(of([](auto&) {}) == plain);
    CHECK(of([](auto& t) { t.layers = 30; }) != plain);
    CHECK(of([](auto& t) { t.patch = {1, 1, 2}; }) != plain);
    CHECK(of([](auto& t) { t.output_columns = 64; }) != plain);
    CHECK(of([](auto& t) { t.output_type = dtype::bf16; }) != plain);
    CHECK(of([](auto& t) { t.joint_front = 3; }) != plain);
}

TEST_CASE("what does not nest is refused, with the reason") {
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 7), 5};
    composition_options options = some_options();
    options.latent.layout = latent_layout::sharded;
    CHECK_THROWS_WITH(plan_composition(c.problem(), {{"step", 2}, {"latent", 2}}, options),
                      ContainsSubstring("cuts the latent anew at each step"));
    options = some_options();
    CHECK_THROWS_WITH(plan_composition(c.problem(), {{"guidance", 3}}, options),
                      ContainsSubstring("use 1 to 2 ranks"));
    CHECK_THROWS_WITH(plan_composition(c.problem(), {{"stage", 2}}, options),
                      ContainsSubstring("axis stage belongs to loop::dual_paral"));
    CHECK_THROWS_WITH(plan_composition(c.problem(), {{"latent", 2}}, options).step_of(0),
                      ContainsSubstring("latent=2 has none"));
    // Nested by hand, the same is refused on every rank.
    const mesh_shape shape{{"step", 2}, {"latent", 2}};
    for (const std::string& text : messages_of(4, [&](thread_communicator& world) {
             mesh<thread_communicator> axes(world, shape);
             latent_parallel_options latent;
             latent.layout = latent_layout::sharded;
             latent_parallel policy(form, axes.axis("latent"),
                                    plan_latent_parallel(c.problem(), latent, 2));
             loop::para_step loop(policy, axes.axis("step"), c.schedule,
                                  loop::plan_para_step(c.problem(), {}, 2));
         })) {
        CHECK_THAT(text, ContainsSubstring("replicated"));
    }
}

TEST_CASE("a model that throws anywhere in the nest stops all ranks, with its message") {
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 7), 5};
    const auto plan = plan_composition(c.problem(), {{"step", 2}, {"guidance", 2}, {"latent", 2}},
                                       some_options());
    for (int thrower = 0; thrower < 8; ++thrower) {
        for (const std::string& text : messages_of(8, [&](thread_communicator& world) {
                 index_t calls = 0;
                 const any_model model = [&](const_latent_view z, const step_info& info,
                                             latent_view p, stream_ref s) {
                     if (world.rank() == thrower && ++calls == 3)
                         throw std::runtime_error("no memory left");
                     form(z, info, p, s);
                 };
                 static_cast<void>(sample_composed(world, plan, model, c));
             })) {
            CHECK_THAT(text, ContainsSubstring("no memory left"));
        }
    }
}

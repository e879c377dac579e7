// SPDX-License-Identifier: Apache-2.0
// ParaStep and nests of policies between processes: the bits of one rank, the bytes of the plan.
#include <latpar/comm/self.hpp>
#include <latpar/mpi/communicator.hpp>
#include <latpar/schedule/by_name.hpp>

#include <loop/para_step_reference.hpp>
#include <mpi/interposer.hpp>
#include <support/catch.hpp>
#include <support/closed_form.hpp>
#include <support/composition_run.hpp>
#include <support/para_step_run.hpp>

#include <string>

using namespace latpar;

namespace {

constexpr closed_form guided_form{0.7f, -0.3f, 4.0f};

/// Empty if every rank's verdict is; the same on every rank.
std::string gathered(const std::string& verdict) {
    auto world = mpi::communicator::world();
    std::string out;
    for (const std::string& text : world.control_all_gather(verdict)) out += text;
    return out;
}

std::string difference(loop::para_step_options options, const sampling_case& c) {
    auto world = mpi::communicator::world();
    const auto plan = plan_para_step(c.problem(), options, world.size());
    any_model model = guided_form;
    const traffic before = interposed_traffic();
    const auto report = sample_in_rounds(world, plan, model, c);
    const index_t left = interposed_traffic().bytes_sent - before.bytes_sent;
    options.degree = world.size();
    self_communicator alone;
    const auto expected =
        sample_in_rounds(alone, plan_para_step(c.problem(), options, 1), model, c);
    std::string out;
    if (report.latent != expected.latent) out += "the latent differs; ";
    if (report.sent_and_received.bytes_sent != plan.bytes_sent_by(world.rank()))
        out += "metered bytes; ";
    if (left != plan.bytes_sent_by(world.rank())) out += "interposed bytes; ";
    if (report.loop_bytes != plan.workspace_bytes(world.rank())) out += "workspace; ";
    if (report.called_steps != plan.steps_of(world.rank())) out += "calls; ";
    return out;
}

std::string difference(const mesh_shape& shape, composition_options options,
                       const sampling_case& c) {
    auto world = mpi::communicator::world();
    const closed_form form{0.7f, -0.3f, 1.0f};
    const auto plan = plan_composition(c.problem(), shape, options);
    const traffic before = interposed_traffic();
    const auto report = sample_composed(world, plan, form, c);
    const index_t left = interposed_traffic().bytes_sent - before.bytes_sent;
    options.simulate = true;
    self_communicator alone;
    const auto expected =
        sample_composed(alone, plan_composition(c.problem(), shape, options), form, c);
    std::string out;
    if (report.latent != expected.latent) out += "the latent differs; ";
    for (const auto& [axis, sent] : report.sent) {
        if (sent != plan.bytes_sent_by(world.rank(), axis)) out += "bytes along " + axis + "; ";
    }
    if (left != plan.bytes_sent_by(world.rank())) out += "interposed bytes; ";
    return out;
}

}  // namespace

TEST_CASE("the recorded runs of the public code come out between processes") {
    const recorded_para_step recorded;
    auto world = mpi::communicator::world();
    for (const recorded_rounds& run : recorded_para_step::runs()) {
        if (run.degree != world.size()) continue;
        loop::para_step_options options;
        options.warm_up = run.warm_up;
        options.history = loop::history::official;
        options.reuse = loop::reuse::own;
        const sampling_case c = recorded.initial(run);
        any_model model = guided_form;
        const auto report =
            sample_in_rounds(world, plan_para_step(c.problem(), options, run.degree), model, c);
        const double distance = recorded.distance(run, report.latent);
        options.degree = run.degree;
        self_communicator alone;
        const auto expected =
            sample_in_rounds(alone, plan_para_step(c.problem(), options, 1), model, c);
        CAPTURE(run.key());
        CHECK(gathered(distance < 2e-5 ? "" : detail::concat("distance ", distance, "; ")) == "");
        CHECK(gathered(report.latent == expected.latent ? "" : "differs; ") == "");
    }
}

TEST_CASE("processes in rounds give the bits of the simulation and send the bytes of the plan") {
    for (const std::string_view name : schedule::names) {
        const sampling_case c{{1, 4, 3, 6, 8}, schedule::by_name(name, 12), 11};
        for (const loop::history history : {loop::history::official, loop::history::shared}) {
            for (const loop::reuse reuse :
                 {loop::reuse::own, loop::reuse::newest, loop::reuse::extrapolated}) {
                for (const dtype wire : {dtype::f32, dtype::bf16}) {
                    loop::para_step_options options;
                    options.warm_up = 2;
                    options.history = history;
                    options.reuse = reuse;
                    options.wire_prediction = options.wire_state = wire;
                    const std::string verdict = gathered(difference(options, c));
                    CAPTURE(name, name_of(history), name_of(reuse), name_of(wire));
                    CHECK(verdict == "");
                }
            }
        }
    }
}

TEST_CASE("nests on every mesh of so many processes give the bits of one rank") {
    const int ranks = mpi::communicator::world().size();
    for (const std::string_view name : schedule::names) {
        const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name(name, 8), 5};
        for (int steps = 1; steps <= ranks; ++steps) {
            for (int branches = 1; branches <= 2; ++branches) {
                if (ranks % (steps * branches) != 0) continue;
                const int latents = ranks / (steps * branches);
                composition_options options;
                options.guidance.rule = guidance_rule::classifier_free(4.0);
                options.step.warm_up = 2;
                const mesh_shape shape{
                    {"step", steps}, {"guidance", branches}, {"latent", latents}};
                const std::string verdict = gathered(difference(shape, options, c));
                CAPTURE(name, to_string(shape));
                CHECK(verdict == "");
            }
        }
    }
}

TEST_CASE("a model that throws in one process of a nest stops all, with its message") {
    auto world = mpi::communicator::world();
    const int ranks = world.size();
    const sampling_case c{{1, 3, 4, 6, 8}, schedule::by_name("unipc_flow", 7), 5};
    const mesh_shape shape = ranks % 4 == 0
                                 ? mesh_shape{{"step", 2}, {"guidance", 2}, {"latent", ranks / 4}}
                                 : mesh_shape{{"step", ranks}};
    composition_options options;
    options.guidance.rule = guidance_rule::classifier_free(4.0);
    options.step.warm_up = 2;
    std::string message;
    {
        auto channel = world.duplicate();
        const int rank = channel.rank();
        index_t calls = 0;
        const any_model model = [&](const_latent_view z, const step_info& info, latent_view p,
                                    stream_ref s) {
            if (rank == 0 && ++calls == 4) throw std::runtime_error("no memory left");
            guided_form(z, info, p, s);
        };
        try {
            static_cast<void>(
                sample_composed(channel, plan_composition(c.problem(), shape, options), model, c));
        } catch (const std::exception& error) {
            message = error.what();
        }
    }
    const bool told = message.find("no memory left") != std::string::npos;
    CHECK(gathered(told ? "" : "rank without the message: " + message) == "");
}

// SPDX-License-Identifier: Apache-2.0
// LatentParallel between processes: the bits of its simulation, the bytes of its plan.
#include <latpar/comm/self.hpp>
#include <latpar/mpi/communicator.hpp>
#include <latpar/schedule/by_name.hpp>

#include <mpi/interposer.hpp>
#include <step/latent_parallel_reference.hpp>
#include <support/catch.hpp>
#include <support/closed_form.hpp>

using namespace latpar;

namespace {

constexpr std::array layouts{latent_layout::central, latent_layout::replicated,
                             latent_layout::sharded};

/// Empty if every rank's verdict is; the same on every rank.
std::string gathered(const std::string& verdict) {
    auto world = mpi::communicator::world();
    std::string out;
    for (const std::string& text : world.control_all_gather(verdict)) out += text;
    return out;
}

/// Runs `plan` on all processes and on this one alone, and says what differs.
std::string difference(const latent_parallel_options& options, const any_model& model,
                       const sampling_case& c) {
    auto world = mpi::communicator::world();
    const auto plan = plan_latent_parallel(c.problem(), options, world.size());
    const traffic before = interposed_traffic();
    const rank_report report = sample_in_parallel(world, plan, model, c);
    const index_t left = interposed_traffic().bytes_sent - before.bytes_sent;
    latent_parallel_options alone_options = options;
    alone_options.parts = world.size();
    self_communicator alone;
    const auto expected =
        sample_in_parallel(alone, plan_latent_parallel(c.problem(), alone_options, 1), model, c);
    std::string out;
    if (report.latent != expected.latent) out += "the latent differs; ";
    if (report.sent_and_received.bytes_sent != plan.bytes_sent_by(world.rank()))
        out += "metered bytes; ";
    if (left != plan.bytes_sent_by(world.rank())) out += "interposed bytes; ";
    if (report.policy_bytes != plan.workspace_bytes(world.rank())) out += "workspace; ";
    return out;
}

}  // namespace

TEST_CASE("processes give the bits of the simulation and send the bytes of the plan") {
    const closed_form model{0.7f, -0.3f, 4.0f};
    const int ranks = mpi::communicator::world().size();
    for (const std::string_view name : schedule::names) {
        const sampling_case c{{1, 4, 5, 8, 12}, schedule::by_name(name, 6), 11};
        for (const latent_layout layout : layouts) {
            for (const dtype wire : {dtype::f32, dtype::bf16}) {
                latent_parallel_options options;
                options.overlap = ranks == 1 ? 0 : 0.5;
                options.layout = layout;
                options.wire_prediction = options.wire_state = wire;
                const std::string verdict = gathered(difference(options, model, c));
                CAPTURE(name, name_of(layout), name_of(wire));
                CHECK(verdict == "");
            }
        }
    }
}

TEST_CASE("a model that throws in one process stops all, with its message") {
    auto world = mpi::communicator::world();
    const int thrower = 0;  // the one that never idles
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    latent_parallel_options options;
    options.overlap = 0;
    std::string message;
    {
        auto channel = world.duplicate();
        const int rank = channel.rank();
        const any_model model = [=](const_latent_view z, const step_info& info, latent_view p,
                                    stream_ref s) {
            if (rank == thrower && info.samples[0].step == 2)
                throw std::runtime_error("no memory left");
            closed_form{}(z, info, p, s);
        };
        try {
            static_cast<void>(sample_in_parallel(
                channel, plan_latent_parallel(c.problem(), options, channel.size()), model, c));
        } catch (const std::exception& error) {
            message = error.what();
        }
    }
    const bool told = message.find("no memory left") != std::string::npos;
    CHECK(gathered(told ? "" : "rank without the message: " + message) == "");
}

TEST_CASE("the recorded runs come out between processes, in every layout") {
    auto world = mpi::communicator::world();
    const recorded_latent_parallel recorded;
    for (const recorded_run& run : recorded_runs) {
        if (run.parts != world.size()) continue;
        for (const latent_layout layout : layouts) {
            const auto report = sample_in_parallel(world, recorded.plan(run, layout, run.parts),
                                                   recorded.model(), recorded.initial());
            const double distance = recorded.distance(run, -1, report.latent);
            CAPTURE(run.key, name_of(layout));
            CHECK(gathered(distance < 1e-4 ? "" : detail::concat("distance ", distance, "; ")) ==
                  "");
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
// DualParal between processes: the bits of one stage, the bytes of the plan.
#include <latpar/comm/mesh.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/mpi/communicator.hpp>

#include <loop/dual_paral_reference.hpp>
#include <mpi/interposer.hpp>
#include <support/catch.hpp>

using namespace latpar;

TEST_CASE("the recorded videos come out between processes, with the bits of one stage") {
    const recorded_dual_paral recorded;
    auto world = mpi::communicator::world();
    const int stages = std::min(world.size(), 4);  // the model has four layers
    for (const recorded_video& c : recorded.videos()) {
        std::string verdict;
        // Ranks beyond the layers stay out of it.
        if (auto part = world.split(world.rank() < stages ? 0 : no_color, world.rank())) {
            const auto plan = recorded.plan(c, stages);
            const index_t before = interposed_traffic().bytes_sent;
            const auto report = recorded.sample(*part, c);
            const index_t left = interposed_traffic().bytes_sent - before;
            const index_t planned = plan.bytes_sent_by(part->rank(), plan.iterations());
            if (report.sent_bytes != planned) verdict += "metered bytes; ";
            if (left != planned) verdict += "interposed bytes; ";
            if (part->rank() == 0) {
                self_communicator alone;
                if (report.video != recorded.sample(alone, c).video) verdict += "bits; ";
                if (!(recorded.distance(c, "video", report.video) < 5e-4)) verdict += "recording; ";
            }
        }
        std::string all;
        for (const std::string& text : world.control_all_gather(verdict)) all += text;
        CAPTURE(c.name, stages);
        CHECK(all == "");
    }
}

TEST_CASE("branches of guidance on pipelines of processes give the bits of one process") {
    const recorded_dual_paral recorded;
    auto world = mpi::communicator::world();
    const int stages = std::min(world.size() / 2, 4);
    for (const recorded_video& c : recorded.videos()) {
        if (stages == 0) continue;  // one process has no pipelines side by side
        std::string verdict;
        const mesh_shape shape{{"stage", stages}, {"guidance", 2}};
        if (auto part = world.split(world.rank() < shape.size() ? 0 : no_color, world.rank())) {
            const auto plan = recorded.plan(c, stages, 2);
            mesh<metered<mpi::communicator>> ranks(mesh<mpi::communicator>(*part, shape));
            const int stage = ranks.coordinate("stage");
            const index_t before = interposed_traffic().bytes_sent;
            const auto report = recorded.sample_on(ranks, c, plan);
            const index_t left = interposed_traffic().bytes_sent - before;
            const index_t along = plan.bytes_sent_by(stage, plan.iterations());
            const index_t across = plan.guidance_bytes_sent_by(stage, plan.iterations());
            const auto metered_along = [&](const char* axis) {
                return ranks.axis(axis).account().total().bytes_sent;
            };
            if (metered_along("stage") != along) verdict += "bytes along stage; ";
            if (metered_along("guidance") != across) verdict += "bytes along guidance; ";
            if (left != along + across) verdict += "interposed bytes; ";
            if (part->rank() == 0) {
                self_communicator alone;
                if (report.video != recorded.sample(alone, c).video) verdict += "bits; ";
            } else if (!report.video.empty()) {
                verdict += "a sink beside that of rank 0; ";
            }
        }
        std::string all;
        for (const std::string& text : world.control_all_gather(verdict)) all += text;
        CAPTURE(c.name, stages);
        CHECK(all == "");
    }
}

// SPDX-License-Identifier: Apache-2.0
// LatentParallel against the recorded runs of the paper's scheme: simulated, and on thread ranks.
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>

#include <step/latent_parallel_reference.hpp>
#include <support/catch.hpp>

#include <algorithm>

using namespace latpar;

TEST_CASE("every recorded run comes out in every layout, simulated and on threads, bit for bit") {
    const recorded_latent_parallel recorded;
    double worst = 0;
    for (const recorded_run& run : recorded_runs) {
        std::vector<float> first;
        for (const auto layout :
             {latent_layout::central, latent_layout::replicated, latent_layout::sharded}) {
            CAPTURE(run.key, name_of(layout));
            const sampling_case c = recorded.initial();
            std::vector<std::vector<float>> results(static_cast<std::size_t>(run.parts));
            thread_team(run.parts).run([&](thread_communicator& comm) {
                results[static_cast<std::size_t>(comm.rank())] =
                    sample_in_parallel(comm, recorded.plan(run, layout, run.parts),
                                       recorded.model(), c)
                        .latent;
            });
            if (first.empty()) {
                self_communicator alone;
                first =
                    sample_in_parallel(alone, recorded.plan(run, layout, 1), recorded.model(), c)
                        .latent;
            }
            bool equal = true;
            for (const auto& result : results) equal = equal && result == first;
            CHECK(equal);
            worst = std::max(worst, recorded.distance(run, -1, results[0]));
            CHECK(recorded.distance(run, -1, results[0]) < 1e-4);
        }
    }
    WARN("largest relative L2 distance of a final latent: " << worst);
}

TEST_CASE("the first steps of every recorded run come out, too") {
    const recorded_latent_parallel recorded;
    for (const recorded_run& run : recorded_runs) {
        for (index_t steps = 1; steps <= 3; ++steps) {
            sampling_case c = recorded.initial();
            c.stop_after = steps;
            self_communicator alone;
            const auto result = sample_in_parallel(
                alone, recorded.plan(run, latent_layout::replicated, 1), recorded.model(), c);
            CAPTURE(run.key, steps);
            CHECK(recorded.distance(run, steps, result.latent) < 1e-4);
        }
    }
}

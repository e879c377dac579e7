// SPDX-License-Identifier: Apache-2.0
// What LatentParallel sends for Wan 2.1 at 480x832, from the plans.
#include <latpar/schedule/by_name.hpp>
#include <latpar/step/latent_parallel_plan.hpp>

#include <cstdio>

using namespace latpar;

int main() {
    constexpr int ranks = 4;
    constexpr index_t steps = 60;
    std::printf(
        "Wan 2.1, latent 16x21x60x104, %d ranks, overlap 0.5, %ld steps; MiB a run (ratio to the "
        "paper's accounting)\n\n| scheduler | history | central | replicated | sharded | sharded, "
        "bf16 |\n"
        "|---|---|---|---|---|---|\n",
        ranks, static_cast<long>(steps));
    for (const std::string_view name : schedule::names) {
        const auto schedule = schedule::by_name(name, steps);
        const auto problem = latent_problem::of({1, 16, 21, 60, 104}, schedule);
        std::printf("| `%s` | %ld |", std::string(name).c_str(),
                    static_cast<long>(schedule.history_size()));
        for (const auto& [layout, wire] : {std::pair(latent_layout::central, dtype::f32),
                                           std::pair(latent_layout::replicated, dtype::f32),
                                           std::pair(latent_layout::sharded, dtype::f32),
                                           std::pair(latent_layout::sharded, dtype::bf16)}) {
            latent_parallel_options options;
            options.cores = partition::paper;
            options.layout = layout;
            options.wire_prediction = options.wire_state = wire;
            options.result_everywhere = false;
            const auto plan = plan_latent_parallel(problem, options, ranks);
            std::printf(
                " %.2f (%.3f) |", static_cast<double>(plan.bytes()) / (1024.0 * 1024.0),
                static_cast<double>(plan.bytes()) / static_cast<double>(plan.paper_bytes()));
        }
        std::printf("\n");
    }
}

// SPDX-License-Identifier: Apache-2.0
// What ParaStep, and nests of policies, send and take for Wan 2.1 at 480x832, from the plans.
#include <latpar/compose/composition_plan.hpp>
#include <latpar/loop/batch_step_plan.hpp>
#include <latpar/schedule/by_name.hpp>

#include <algorithm>
#include <cstdio>

using namespace latpar;

namespace {

constexpr index_t steps = 50;
constexpr std::array schedulers{"euler_flow", "dpmpp2m_flow", "unipc_flow"};

latent_problem problem_of(const char* scheduler) {
    return latent_problem::of({1, 16, 21, 60, 104}, schedule::by_name(scheduler, steps));
}

double mebibytes(index_t bytes) {
    return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

void print_bytes() {
    struct kind {
        const char* name;
        loop::history history;
        loop::reuse reuse;
        dtype wire;
    };
    using loop::history;
    using loop::reuse;
    constexpr std::array kinds{
        kind{"official, own", history::official, reuse::own, dtype::f32},
        kind{"shared, own", history::shared, reuse::own, dtype::f32},
        kind{"shared, newest", history::shared, reuse::newest, dtype::f32},
        kind{"shared, extrapolated", history::shared, reuse::extrapolated, dtype::f32},
        kind{"shared, own, bf16", history::shared, reuse::own, dtype::bf16}};
    std::printf(
        "MiB a run, the result on rank 0 (ratio to what the paper's code sends)\n\n"
        "| scheduler | ranks | the paper's code |");
    for (const kind& k : kinds) std::printf(" %s |", k.name);
    std::printf("\n|---|---|---|---|---|---|---|---|\n");
    for (const char* scheduler : schedulers) {
        for (const int ranks : {2, 4}) {
            loop::para_step_options options;
            options.result_everywhere = false;
            const auto problem = problem_of(scheduler);
            const auto papers = loop::plan_para_step(problem, options, ranks).paper_bytes();
            std::printf("| `%s` | %d | %.1f |", scheduler, ranks, mebibytes(papers));
            for (const kind& k : kinds) {
                options.history = k.history;
                options.reuse = k.reuse;
                options.wire_prediction = options.wire_state = k.wire;
                const index_t bytes = loop::plan_para_step(problem, options, ranks).bytes();
                std::printf(" %.1f (%.3f) |", mebibytes(bytes),
                            static_cast<double>(bytes) / static_cast<double>(papers));
            }
            std::printf("\n");
        }
    }
}

void print_memory() {
    std::printf(
        "\nMiB that the loop takes\n\n| scheduler | p | ParaStep, rank 0 | other ranks, at "
        "most | simulated on one rank | BatchStep |\n|---|---|---|---|---|---|\n");
    for (const char* scheduler : schedulers) {
        const auto problem = problem_of(scheduler);
        for (const int p : {2, 4}) {
            const auto plan = loop::plan_para_step(problem, {}, p);
            index_t most = 0;
            for (int rank = 1; rank < p; ++rank) most = std::max(most, plan.workspace_bytes(rank));
            loop::para_step_options alone;
            alone.degree = p;
            loop::batch_step_options batch;
            batch.degree = p;
            std::printf("| `%s` | %d | %.1f | %.1f | %.1f | %.1f |\n", scheduler, p,
                        mebibytes(plan.workspace_bytes(0)), mebibytes(most),
                        mebibytes(loop::plan_para_step(problem, alone, 1).workspace_bytes(0)),
                        mebibytes(loop::plan_batch_step(problem, batch).workspace_bytes()));
        }
    }
}

void print_nests() {
    composition_options options;
    options.guidance.rule = guidance_rule::classifier_free(5.0);
    options.result_everywhere = false;
    std::printf(
        "\nNests on 8 ranks, `unipc_flow`; MiB a run, the result on rank 0\n\n| mesh | step "
        "| guidance | latent | all | model calls, critical path | speed-up at most | "
        "workspace, busiest rank |\n|---|---|---|---|---|---|---|---|\n");
    for (const char* mesh : {"step=8", "latent=8", "guidance=2,latent=4", "step=4,guidance=2",
                             "step=4,latent=2", "step=2,latent=4", "step=2,guidance=2,latent=2"}) {
        const auto plan =
            plan_composition(problem_of("unipc_flow"), mesh_shape::parse(mesh), options);
        index_t most = 0;
        for (int rank = 0; rank < plan.ranks; ++rank) {
            most = std::max(most, plan.workspace_bytes(rank));
        }
        std::printf("| `%s` | %.1f | %.1f | %.1f | %.1f | %ld of %ld | %.2f | %.1f |\n", mesh,
                    mebibytes(plan.bytes("step")), mebibytes(plan.bytes("guidance")),
                    mebibytes(plan.bytes("latent")), mebibytes(plan.bytes()),
                    static_cast<long>(plan.critical_path_evaluations()),
                    static_cast<long>(plan.serial_evaluations()), plan.speed_up_ceiling(),
                    mebibytes(most));
    }
}

}  // namespace

int main() {
    std::printf("Wan 2.1, latent 16x21x60x104, %ld steps, warm-up %ld\n\n",
                static_cast<long>(steps), static_cast<long>(loop::para_step_options{}.warm_up));
    print_bytes();
    print_memory();
    print_nests();
}

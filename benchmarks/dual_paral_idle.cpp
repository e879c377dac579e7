// SPDX-License-Identifier: Apache-2.0
// How long the stages of DualParal wait, on the bundled model, beside what the plan says.
#include <latpar/comm/thread_team.hpp>
#include <latpar/loop/dual_paral.hpp>

#include <CLI/CLI.hpp>
#include <bundled_model.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <thread>

using namespace latpar;
using bench::json;

namespace {

/// One run: its stages' times, and the seconds from the first frame of noise to the last that is
/// delivered.
struct timing {
    std::vector<loop::stage_times> stages;
    double seconds = 0;
};

timing measure(const generate::job& j, const loop::dual_paral_plan& plan, int threads) {
    timing out;
    out.stages.resize(static_cast<std::size_t>(plan.ranks));
    thread_team(plan.ranks).run([&](thread_communicator& comm) {
        auto model = bench::staged_model(j, threads);
        loop::dual_paral loop(model, comm, j.schedule,
                              guidance_rule::classifier_free(j.options.guidance), plan);
        const auto begin = std::chrono::steady_clock::now();
        loop.run(
            coordinated_noise(j.options.seed, plan.options.block_latents, plan.options.cat_latents),
            [](const_latent_view, index_t) {});
        const std::chrono::duration<double> past = std::chrono::steady_clock::now() - begin;
        out.stages[static_cast<std::size_t>(comm.rank())] = loop.times();
        if (comm.rank() == 0) out.seconds = past.count();
    });
    return out;
}

/// The fastest turn: it was disturbed least.
json to_json(const loop::dual_paral_plan& plan, const std::vector<timing>& turns) {
    const timing& best = *std::ranges::min_element(turns, {}, &timing::seconds);
    const auto estimate = plan.estimate(plan.blocks());
    json measured = json::array();
    double mean = 0;
    for (const loop::stage_times& stage : best.stages) {
        measured.push_back(stage.idle_share());
        mean += stage.idle_share() / static_cast<double>(best.stages.size());
    }
    return {{"stages", plan.ranks},
            {"blocks", plan.blocks()},
            {"seconds", best.seconds},
            {"planned_mean_idle_share", estimate.mean_idle_share},
            {"measured_mean_idle_share", mean},
            {"planned_idle_share", estimate.idle_share},
            {"measured_idle_share", std::move(measured)}};
}

void print_table(const json& runs) {
    std::printf(
        "| stages | blocks | seconds | blocks/s | planned idle | measured | by stage |\n"
        "|---|---|---|---|---|---|---|\n");
    const auto percent = [](const json& share) { return 100 * share.get<double>(); };
    for (const json& run : runs) {
        const double seconds = run.at("seconds");
        std::printf("| %d | %d | %.1f | %.2f | %.1f %% | %.1f %% |", run.at("stages").get<int>(),
                    run.at("blocks").get<int>(), seconds, run.at("blocks").get<int>() / seconds,
                    percent(run.at("planned_mean_idle_share")),
                    percent(run.at("measured_mean_idle_share")));
        for (const json& share : run.at("measured_idle_share")) {
            std::printf(" %.1f", percent(share));
        }
        std::printf(" |\n");
    }
}

/// What runs on this machine, in the mean of the last minute: more than its processors disturb.
std::string load_average() {
    std::ifstream file("/proc/loadavg");
    std::string out;
    file >> out;
    return out;
}

}  // namespace

int main(int argc, char** argv) try {
    bench::dual_paral_case with;
    std::vector<int> stages{1, 2};
    std::vector<index_t> blocks{4, 24};
    int turns = 2;
    std::string results = "dual_paral_idle.json";
    CLI::App app("Idle share of DualParal's stages, measured beside planned");
    app.add_option("--stages", stages)->capture_default_str();
    app.add_option("--blocks", blocks)->capture_default_str();
    app.add_option("--turns", turns, "The fastest of so many is told, at least 1")
        ->capture_default_str();
    with.add_to(app);
    app.add_option("--results", results, "JSON")->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    detail::require(turns >= 1, "--turns ", turns, "; use 1 or more");

    json all = with.head("dual_paral_idle");
    all["processors"] = std::thread::hardware_concurrency();
    all["turns"] = turns;
    all["load_average_before"] = load_average();
    all["runs"] = json::array();

    const generate::job j = with.job();
    // In turns, so that what disturbs the machine disturbs all.
    std::vector<std::pair<loop::dual_paral_plan, std::vector<timing>>> runs;
    for (const int count : stages) {
        for (const index_t b : blocks) {
            with.dual.total_latents = with.dual.cat_latents + b * with.dual.block_latents;
            runs.push_back({bench::plan_dual_paral(j, with.dual, count), {}});
        }
    }
    for (int turn = 0; turn < turns; ++turn) {
        for (auto& [plan, times] : runs) times.push_back(measure(j, plan, with.threads));
    }
    for (const auto& [plan, times] : runs) all["runs"].push_back(to_json(plan, times));
    all["load_average_after"] = load_average();
    bench::write(all, results);
    print_table(all["runs"]);
    return 0;
} catch (const std::exception& error) {
    std::cerr << "dual_paral_idle: " << error.what() << '\n';
    return 1;
}

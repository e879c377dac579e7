// SPDX-License-Identifier: Apache-2.0
// Whether the memory of DualParal grows with the length of the video, on the bundled model: the
// peaks of every rank and of the process, when some frames are out and when all are.
#include <latpar/comm/thread_team.hpp>
#include <latpar/loop/dual_paral.hpp>

#include <CLI/CLI.hpp>
#include <bundled_model.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

using namespace latpar;
using bench::json;

namespace {

/// The most memory that the process had resident, as the system knows it: Linux looks only now and
/// then, so that what it says can fall.
/// Errors: io_error where the system does not say.
index_t peak_resident_bytes() {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
    }
    throw io_error("/proc/self/status has no VmHWM; this benchmark runs on Linux");
}

/// Peaks when so many latents were delivered.
struct mark {
    index_t latents = 0;
    index_t blocks = 0;
    double seconds = 0;  ///< since the run began
    std::vector<index_t> rank_bytes{};
    index_t resident_bytes = 0;
};

/// A run of one video; takes a mark as soon as each number of latents is out.
std::vector<mark> measure(const generate::job& j, const loop::dual_paral_plan& plan,
                          const std::vector<index_t>& when, int threads) {
    std::deque<counting_resource> memory(static_cast<std::size_t>(plan.ranks));
    std::vector<mark> out;
    thread_team(plan.ranks).run([&](thread_communicator& comm) {
        const memory_source source{&memory[static_cast<std::size_t>(comm.rank())],
                                   memory_space::host};
        auto model = bench::staged_model(j, threads, source);
        loop::dual_paral loop(model, comm, j.schedule,
                              guidance_rule::classifier_free(j.options.guidance), plan,
                              kernel::host{}, source);
        const auto begin = std::chrono::steady_clock::now();
        index_t blocks = 0;
        index_t resident = 0;
        const auto sink = [&](const_latent_view frames, index_t first) {
            static_cast<void>(j.decoder->decode(frames));  // and dropped
            ++blocks;
            resident = std::max(resident, peak_resident_bytes());
            if (out.size() == when.size() || first + frames.extents[2] < when[out.size()]) return;
            const std::chrono::duration<double> past = std::chrono::steady_clock::now() - begin;
            mark& now = out.emplace_back();
            now.latents = first + frames.extents[2];
            now.blocks = blocks;
            now.seconds = past.count();
            for (const counting_resource& m : memory) now.rank_bytes.push_back(m.peak_bytes());
            now.resident_bytes = resident;
        };
        loop.run(
            coordinated_noise(j.options.seed, plan.options.block_latents, plan.options.cat_latents),
            sink);
    });
    return out;
}

json to_json(const loop::dual_paral_plan& plan, const mark& early, const mark& late) {
    const auto entry = [](index_t before, index_t after) -> json {
        return {{"early_bytes", before},
                {"late_bytes", after},
                {"ratio", static_cast<double>(after) / static_cast<double>(before)}};
    };
    json out = {{"early_latents", early.latents},
                {"late_latents", late.latents},
                {"blocks_per_second",
                 static_cast<double>(late.blocks - early.blocks) / (late.seconds - early.seconds)},
                {"process", entry(early.resident_bytes, late.resident_bytes)},
                {"ranks", json::array()}};
    for (std::size_t rank = 0; rank < early.rank_bytes.size(); ++rank) {
        json row = entry(early.rank_bytes[rank], late.rank_bytes[rank]);
        row["loop_bytes"] = plan.workspace_bytes(static_cast<int>(rank));
        out["ranks"].push_back(std::move(row));
    }
    return out;
}

void print_table(const json& stages) {
    std::printf(
        "\n| stages | what | peak, MiB, early | late | ratio | within 1.02 |\n"
        "|---|---|---|---|---|---|\n");
    for (const auto& [count, run] : stages.items()) {
        const auto print = [&](const std::string& what, const json& row) {
            const double ratio = row.at("ratio");
            std::printf("| %s | %s | %.2f | %.2f | %.4f | %s |\n", count.c_str(), what.c_str(),
                        row.at("early_bytes").get<double>() / (1 << 20),
                        row.at("late_bytes").get<double>() / (1 << 20), ratio,
                        ratio <= 1.02 ? "yes" : "NO");
        };
        for (std::size_t rank = 0; rank < run.at("ranks").size(); ++rank) {
            print(detail::concat("rank ", rank), run.at("ranks")[rank]);
        }
        print("process", run.at("process"));
    }
    std::printf("\n");
    for (const auto& [count, run] : stages.items()) {
        std::printf("stages: %s, blocks/s: %.3f\n", count.c_str(),
                    run.at("blocks_per_second").get<double>());
    }
}

}  // namespace

int main(int argc, char** argv) try {
    bench::dual_paral_case with;
    with.dual.total_latents = 2000;
    index_t early = 500;
    int stages = 2;
    std::string results = "dual_paral_memory.json";
    CLI::App app("Peak memory of DualParal, early in a long video and at its end");
    app.add_option("--stages", stages, "One number a process: its peak is that of one run")
        ->capture_default_str();
    app.add_option("--latents", with.dual.total_latents, "Delivered in all")->capture_default_str();
    app.add_option("--early", early, "Latents at which the peaks are read first")
        ->capture_default_str();
    with.add_to(app);
    app.add_option("--results", results, "JSON; keeps what it has of other numbers of stages")
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    const index_t latents = with.dual.total_latents;
    detail::require(early > 0 && early < latents, "--early ", early, " is to be between 0 and the ",
                    latents, " latents of --latents");

    json all = with.head("dual_paral_memory");
    all["stages"] = json::object();
    bench::take_over(all, "stages", results);

    const generate::job j = with.job();
    const auto plan = bench::plan_dual_paral(j, with.dual, stages);
    const auto marks = measure(j, plan, {early, latents}, with.threads);
    all["stages"][std::to_string(stages)] = to_json(plan, marks.at(0), marks.at(1));
    bench::write(all, results);
    print_table(all["stages"]);
    return 0;
} catch (const std::exception& error) {
    std::cerr << "dual_paral_memory: " << error.what() << '\n';
    return 1;
}

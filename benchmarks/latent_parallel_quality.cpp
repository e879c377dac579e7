// SPDX-License-Identifier: Apache-2.0
// How near LatentParallel comes to one rank alone, on the bundled model: PSNR over parts, overlap,
// rotation, partition and wire types, with mean and spread over seeds.
#include <latpar/comm/self.hpp>
#include <latpar/loop/serial.hpp>
#include <latpar/step/latent_parallel.hpp>

#include <CLI/CLI.hpp>
#include <bundled_model.hpp>
#include <generate/guided_model.hpp>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <thread>

using namespace latpar;
using bench::json;

namespace {

/// One way to cut, and what it is called in the table.
struct variant {
    std::string name;
    int parts;
    latent_parallel_options options;
};

std::vector<variant> variants() {
    std::vector<variant> out;
    for (const int parts : {2, 4}) {
        for (const bool rotating : {true, false}) {
            for (const double overlap : {0.0, 0.25, 0.5, 1.0}) {
                latent_parallel_options options;
                options.overlap = overlap;
                options.cores = partition::paper;
                options.layout = latent_layout::replicated;
                if (!rotating) options.rotation = {axis::t};
                out.push_back(
                    {detail::concat("K=", parts, " r=", overlap, rotating ? " THW" : " T"), parts,
                     options});
            }
        }
    }
    latent_parallel_options balanced;
    balanced.layout = latent_layout::replicated;
    out.push_back({"K=4 r=0.5 THW balanced", 4, balanced});
    for (const auto& [name, prediction, state] :
         {std::tuple("bf16 predictions", dtype::bf16, dtype::f32),
          std::tuple("bf16", dtype::bf16, dtype::bf16),
          std::tuple("f16", dtype::f16, dtype::f16)}) {
        latent_parallel_options narrow;
        narrow.layout = latent_layout::sharded;
        narrow.wire_prediction = prediction;
        narrow.wire_state = state;
        out.push_back({std::string("K=4 r=0.5 THW balanced ") + name, 4, narrow});
    }
    return out;
}

latent sample_parts(const generate::job& j, const variant& v, int threads) {
    self_communicator comm;
    auto options = v.options;
    options.parts = v.parts;
    options.patch = j.weights->config.patch_size;
    latent_parallel policy(
        generate::guided_model(j, threads, {}), comm,
        plan_latent_parallel(latent_problem::of(j.extents, j.schedule), options, 1));
    loop::serial loop(policy, j.schedule, j.extents);
    return bench::finish(loop, j);
}

/// The JSON of an earlier or another process.
/// Errors: io_error if it cannot be read; usage_error if it was made with another number of steps.
json read_results(const std::string& path, const json& here) {
    std::ifstream file(path);
    detail::require<io_error>(file.good(), "cannot read ", path);
    json out = json::parse(file);
    detail::require(out.at("steps") == here.at("steps"), path, " was made with ",
                    out.at("steps").dump(), " steps, not with ", here.at("steps").dump(),
                    "; give the same --steps, or another file");
    return out;
}

/// A row of Markdown for every variant, over the seeds that have it.
void print_table(const json& seeds) {
    std::cout << "\n| variant | seeds | PSNR, mean | standard deviation | least | most |\n"
              << "|---|---|---|---|---|---|\n";
    for (const variant& v : variants()) {
        std::vector<double> psnr;
        for (const auto& [name, row] : seeds.items()) {
            if (row.contains(v.name)) psnr.push_back(row.at(v.name).at("psnr_db"));
        }
        if (psnr.empty()) continue;
        const auto s = bench::statistics::of(psnr);
        std::printf("| %s | %zu | %.2f | %.2f | %.2f | %.2f |\n", v.name.c_str(), s.count, s.mean,
                    s.deviation, s.least, s.most);
    }
}

}  // namespace

int main(int argc, char** argv) try {
    generate::options options;
    options.quiet = true;
    int first = 0;
    int seeds = bench::prompts;
    std::string results = "latent_parallel_quality.json";
    std::vector<std::string> others;
    std::vector<std::string> notes;
    std::string sheets;
    int threads = static_cast<int>(std::thread::hardware_concurrency());
    CLI::App app("PSNR of LatentParallel against one rank, by parts, overlap and rotation");
    app.add_option("--seeds", seeds, "Seed s samples prompt s mod 8")->capture_default_str();
    app.add_option("--first", first, "The first seed; earlier ones are taken from --results")
        ->capture_default_str();
    app.add_option("--steps", options.steps)->capture_default_str();
    app.add_option("--weights", options.weights);
    app.add_option("--threads", threads)->capture_default_str();
    app.add_option("--results", results,
                   "JSON, rewritten after every sample; what it holds is not run again")
        ->capture_default_str();
    app.add_option("--add", others, "Results of other processes, to take in before");
    app.add_option("--note", notes, "KEY=TEXT to keep in the JSON, such as commit=...");
    app.add_option("--sheets", sheets, "Folder for a contact sheet of the first seed");
    CLI11_PARSE(app, argc, argv);

    json all = {{"benchmark", "latent_parallel_quality"},
                {"compiler", __VERSION__},
                {"steps", options.steps},
                {"guidance", options.guidance},
                {"seeds", json::object()}};
    if (std::filesystem::exists(results)) all = read_results(results, all);
    for (const std::string& path : others) {
        all["seeds"].merge_patch(read_results(path, all).at("seeds"));
    }
    bench::add_notes(all, notes);

    for (int seed = first; seed < seeds; ++seed) {
        json& row = all["seeds"][std::to_string(seed)];
        options.seed = static_cast<std::uint64_t>(seed);
        options.prompt = bench::prompt_of(seed);
        const bool draws = seed == 0 && !sheets.empty();
        const generate::job j = generate::prepare(options);
        std::optional<latent> serial;
        std::map<std::string, std::vector<media::rgb_video>> rows;
        for (const variant& v : variants()) {
            if (row.contains(v.name) && !draws) continue;
            if (!serial) {
                generate::guided_model model(j, threads, {});
                loop::serial loop(model, j.schedule, j.extents);
                serial = bench::finish(loop, j);
            }
            const latent parts = sample_parts(j, v, threads);
            const auto alike = generate::compare(j, parts.view(), std::as_const(*serial).view());
            row[v.name] = {{"psnr_db", alike.psnr_db}, {"relative_error", alike.relative_error}};
            bench::write(all, results);
            std::cout << "seed " << seed << "  " << v.name << "  " << alike.psnr_db << " dB"
                      << std::endl;
            if (draws) {
                auto& sheet = rows[detail::concat("k", v.parts)];
                if (sheet.empty())
                    sheet.push_back(j.decoder->decode(std::as_const(*serial).view()));
                sheet.push_back(j.decoder->decode(parts.view()));
            }
        }
        for (const auto& [name, videos] : rows) {
            media::write_contact_sheet(sheets + "/latent_parallel_" + name + ".png", videos, 8);
        }
    }

    bench::write(all, results);
    print_table(all.at("seeds"));
    return 0;
} catch (const std::exception& error) {
    std::cerr << "latent_parallel_quality: " << error.what() << '\n';
    return 1;
}

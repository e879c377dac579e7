// SPDX-License-Identifier: Apache-2.0
// How near LatentParallel comes to one rank alone, on the bundled model: PSNR over parts, overlap,
// rotation, partition and wire types, averaged over seeds.
#include <latpar/comm/self.hpp>
#include <latpar/loop/serial.hpp>
#include <latpar/schedule/philox_noise.hpp>
#include <latpar/step/latent_parallel.hpp>

#include <CLI/CLI.hpp>
#include <generate/guided_model.hpp>
#include <generate/job.hpp>
#include <nlohmann/json.hpp>

#include <fstream>
#include <iostream>
#include <map>
#include <thread>

using namespace latpar;
using json = nlohmann::ordered_json;

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

const std::vector<std::string> prompts{"red circle, blue star, night",
                                       "yellow square, day",
                                       "green triangle, white ring, forest",
                                       "orange star, cyan circle, purple square, sunset",
                                       "white star, night",
                                       "blue ring, red triangle, day",
                                       "cyan square, yellow ring, sunset",
                                       "purple circle, green star, white triangle, forest"};

template <class Model>
latent sample(Model& model, const generate::job& j) {
    loop::serial loop(model, j.schedule, j.extents);
    const philox_noise noise(j.options.seed);
    loop.start(noise);
    loop.run(noise);
    latent out(j.extents);
    loop.collect(out.view());
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
    return sample(policy, j);
}

}  // namespace

int main(int argc, char** argv) try {
    generate::options options;
    options.quiet = true;
    int seeds = static_cast<int>(prompts.size());
    std::string results = "latent_parallel_quality.json";
    std::string sheets;
    int threads = static_cast<int>(std::thread::hardware_concurrency());
    CLI::App app("PSNR of LatentParallel against one rank, by parts, overlap and rotation");
    app.add_option("--seeds", seeds, "Seed s samples prompt s mod 8")->capture_default_str();
    app.add_option("--steps", options.steps)->capture_default_str();
    app.add_option("--weights", options.weights);
    app.add_option("--threads", threads)->capture_default_str();
    app.add_option("--results", results,
                   "JSON, rewritten after every seed; what it holds is not run again")
        ->capture_default_str();
    app.add_option("--sheets", sheets, "Folder for a contact sheet of the first seed");
    CLI11_PARSE(app, argc, argv);

    json all = {{"steps", options.steps}, {"seeds", json::object()}};
    if (std::ifstream file(results); file) all = json::parse(file);
    for (int seed = 0; seed < seeds; ++seed) {
        json& row = all["seeds"][std::to_string(seed)];
        options.seed = static_cast<std::uint64_t>(seed);
        options.prompt = prompts[static_cast<std::size_t>(seed) % prompts.size()];
        const bool draws = seed == 0 && !sheets.empty();
        const generate::job j = generate::prepare(options);
        std::optional<latent> serial;
        std::map<std::string, std::vector<media::rgb_video>> rows;
        for (const variant& v : variants()) {
            if (row.contains(v.name) && !draws) continue;
            if (!serial) {
                generate::guided_model model(j, threads, {});
                serial = sample(model, j);
            }
            const latent parts = sample_parts(j, v, threads);
            const auto alike = generate::compare(j, parts.view(), std::as_const(*serial).view());
            row[v.name] = {{"psnr_db", alike.psnr_db}, {"relative_error", alike.relative_error}};
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
        std::ofstream(results) << all.dump(1) << '\n';
    }

    std::cout << "\n| variant | PSNR, mean over " << seeds << " seeds | worst |\n|---|---|---|\n";
    for (const variant& v : variants()) {
        double sum = 0;
        double worst = 1e9;
        for (int seed = 0; seed < seeds; ++seed) {
            const double psnr = all["seeds"][std::to_string(seed)][v.name]["psnr_db"];
            sum += psnr;
            worst = std::min(worst, psnr);
        }
        std::printf("| %s | %.2f dB | %.2f dB |\n", v.name.c_str(), sum / seeds, worst);
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << "latent_parallel_quality: " << error.what() << '\n';
    return 1;
}

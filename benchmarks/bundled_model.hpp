// SPDX-License-Identifier: Apache-2.0
// What the benchmarks on the bundled model share: prompts, samples, statistics and results.
#pragma once

#include <latpar/denoise/guidance_rule.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <CLI/CLI.hpp>
#include <generate/job.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace bench {

using latpar::index_t;
using json = nlohmann::ordered_json;

/// Seed s samples prompt s mod 8.
inline const std::string& prompt_of(int seed) {
    static const std::vector<std::string> prompts{
        "red circle, blue star, night",
        "yellow square, day",
        "green triangle, white ring, forest",
        "orange star, cyan circle, purple square, sunset",
        "white star, night",
        "blue ring, red triangle, day",
        "cyan square, yellow ring, sunset",
        "purple circle, green star, white triangle, forest"};
    return prompts[static_cast<std::size_t>(seed) % prompts.size()];
}
inline constexpr int prompts = 8;

/// Samples a job's latent with a loop, from the noise of its seed.
template <class Loop>
latpar::latent finish(Loop& loop, const generate::job& j) {
    const latpar::philox_noise noise(j.options.seed);
    loop.start(noise);
    loop.run(noise);
    latpar::latent out(j.extents);
    loop.collect(out.view());
    return out;
}

/// A job's model, one rank's instance, whose layers can be called apart.
inline wan::transformer<> staged_model(const generate::job& j, int threads,
                                       latpar::memory_source memory = {}) {
    wan::transformer<> out(
        j.weights, std::make_shared<wan::executor>(wan::executor_options{threads, "auto", memory}));
    out.set_text(latpar::guidance_branch::conditional, j.conditional);
    out.set_text(latpar::guidance_branch::unconditional, j.unconditional);
    return out;
}

/// DualParal with a job's shape, schedule and guidance.
inline latpar::loop::dual_paral_plan plan_dual_paral(
    const generate::job& j, const latpar::loop::dual_paral_options& options, int stages) {
    auto window = j.extents;
    window[2] = options.block_latents + options.cat_latents;
    const auto rule = latpar::guidance_rule::classifier_free(j.options.guidance);
    return latpar::loop::plan_dual_paral(
        latpar::latent_problem::of(window, j.schedule), options,
        latpar::loop::describe_stages(staged_model(j, 1), rule, {window[2], window[3], window[4]},
                                      options.cat_latents),
        stages);
}

/// Of a sample of numbers; the deviation has count - 1 in it.
struct statistics {
    std::size_t count = 0;
    double mean = 0;
    double deviation = 0;
    double least = 0;
    double most = 0;

    [[nodiscard]] double standard_error() const {
        return deviation / std::sqrt(static_cast<double>(count));
    }
    /// Errors: usage_error for no numbers.
    [[nodiscard]] static statistics of(const std::vector<double>& values) {
        latpar::detail::require(!values.empty(), "there is nothing to take the mean of");
        statistics out;
        out.count = values.size();
        const auto count = static_cast<double>(values.size());
        for (const double value : values) out.mean += value / count;
        double squares = 0;
        for (const double value : values) squares += (value - out.mean) * (value - out.mean);
        out.deviation = std::sqrt(squares / std::max(count - 1, 1.0));
        const auto [least, most] = std::minmax_element(values.begin(), values.end());
        out.least = *least;
        out.most = *most;
        return out;
    }
};

/// Keeps `--note KEY=TEXT` in the results. Errors: usage_error for other notes.
inline void add_notes(json& results, const std::vector<std::string>& notes) {
    for (const std::string& note : notes) {
        const auto end = note.find('=');
        latpar::detail::require(end != std::string::npos, "--note ", note, " is not KEY=TEXT");
        results[note.substr(0, end)] = note.substr(end + 1);
    }
}

/// Takes over `results[key]` of an earlier process, if it left a file.
/// Errors: usage_error if that had other settings or notes.
inline void take_over(json& results, const std::string& key, const std::string& path) {
    std::ifstream file(path);
    if (!file) return;
    json before = json::parse(file);
    json here = results;
    here[key] = before[key];
    latpar::detail::require(here == before, path,
                            " was begun with other settings or notes; give those again, or "
                            "another --results");
    results = std::move(before);
}

/// Errors: io_error if the file cannot be written.
inline void write(const json& results, const std::string& path) {
    std::ofstream file(path);
    file << results.dump(1) << '\n';
    file.close();
    latpar::detail::require<latpar::io_error>(file.good(), path, " cannot be written");
}

inline std::string processor() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
    }
    return "unknown";
}

/// What the benchmarks of a DualParal run let the user choose.
struct dual_paral_case {
    generate::options options;
    latpar::loop::dual_paral_options dual{};
    int threads = 1;
    std::vector<std::string> notes{};

    dual_paral_case() {
        options.quiet = true;
        options.height = 48;
        options.steps = 8;
    }
    void add_to(CLI::App& app) {
        app.add_option("--steps", options.steps)->capture_default_str();
        app.add_option("--size", options.height, "Height and width in pixels")
            ->capture_default_str();
        app.add_option("--block-latents", dual.block_latents)->capture_default_str();
        app.add_option("--cat-latents", dual.cat_latents)->capture_default_str();
        app.add_option("--weights", options.weights);
        app.add_option("--threads", threads, "Of each stage")->capture_default_str();
        app.add_option("--note", notes, "KEY=TEXT to keep in the JSON, such as commit=...");
    }
    [[nodiscard]] generate::job job() {
        options.width = options.height;
        options.frames = dual.block_latents;
        return generate::prepare(options);
    }
    /// The head of the results.
    [[nodiscard]] json head(const char* benchmark) const {
        json out = {{"benchmark", benchmark},
                    {"processor", processor()},
                    {"compiler", __VERSION__},
                    {"steps", options.steps},
                    {"guidance", options.guidance},
                    {"pixels", {options.height, options.height}},
                    {"block_latents", dual.block_latents},
                    {"cat_latents", dual.cat_latents},
                    {"threads_of_a_stage", threads}};
        add_notes(out, notes);
        return out;
    }
};

}  // namespace bench

// SPDX-License-Identifier: Apache-2.0
// How near ParaStep and BatchStep come to one step after the other, on the bundled model: PSNR over
// degree, warm-up, scheduler, reuse and history, for several seeds.
#include <latpar/comm/self.hpp>
#include <latpar/loop/batch_step.hpp>
#include <latpar/loop/para_step.hpp>
#include <latpar/loop/serial.hpp>

#include <CLI/CLI.hpp>
#include <bundled_model.hpp>
#include <generate/guided_model.hpp>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <thread>
#include <unordered_map>

using namespace latpar;
using bench::json;

namespace {

const std::vector<std::string> schedulers{"euler_flow", "unipc_flow", "dpmpp2m_flow"};

/// Calls the model once for each latent that it is shown at a step. The runs of one seed share
/// their warm-up, and more.
class remembering {
public:
    explicit remembering(generate::guided_model model) : model_(std::move(model)) {}

    void operator()(const_latent_view z, const step_info& info, latent_view prediction,
                    stream_ref stream) {
        const auto bytes = static_cast<std::size_t>(z.bytes());
        std::string key = std::to_string(info.samples.front().step) + ':';
        key.append(reinterpret_cast<const char*>(z.as<float>()), bytes);
        const std::span out(prediction.as<float>(), bytes / sizeof(float));
        if (const auto known = predictions_.find(key); known != predictions_.end()) {
            std::copy(known->second.begin(), known->second.end(), out.begin());
            return;
        }
        model_(z, info, prediction, stream);
        predictions_.emplace(std::move(key), std::vector<float>(out.begin(), out.end()));
    }
    [[nodiscard]] index_t calls() const noexcept { return model_.calls(); }

private:
    generate::guided_model model_;
    std::unordered_map<std::string, std::vector<float>> predictions_;
};

latent sample_serially(remembering& model, const generate::job& j) {
    loop::serial loop(model, j.schedule, j.extents);
    return bench::finish(loop, j);
}

/// One way to take several steps at once, and what it is called in the table.
struct variant {
    std::string policy;
    int degree = 1;
    loop::para_step_options options;

    [[nodiscard]] std::string name() const {
        return detail::concat(policy, " p=", degree, " M=", options.warm_up, ' ',
                              name_of(options.reuse), ' ', name_of(options.history));
    }
    /// On one rank, which makes the calls of all in turn: the same bits.
    [[nodiscard]] std::pair<latent, index_t> sample(remembering& model,
                                                    const generate::job& j) const {
        const auto problem = latent_problem::of(j.extents, j.schedule);
        if (policy == "batch_step") {
            loop::batch_step_options batch;
            batch.warm_up = options.warm_up;
            batch.degree = degree;
            batch.reuse = options.reuse;
            loop::batch_step loop(model, j.schedule, plan_batch_step(problem, batch));
            latent out = bench::finish(loop, j);
            return {std::move(out), loop.plan().critical_path_calls()};
        }
        self_communicator comm;
        auto one = options;
        one.degree = degree;
        loop::para_step loop(model, comm, j.schedule, plan_para_step(problem, one, 1));
        latent out = bench::finish(loop, j);
        return {std::move(out), loop.plan().critical_path_calls()};
    }
};

std::vector<variant> variants(const std::string& scheduler) {
    using loop::history;
    using loop::reuse;
    std::vector<variant> out;
    const auto add = [&](const char* policy, int degree, index_t warm_up, history h, reuse r) {
        loop::para_step_options options;
        options.warm_up = warm_up;
        options.history = h;
        options.reuse = r;
        out.push_back({policy, degree, options});
    };
    for (const index_t warm_up : {3, 5, 8}) {
        for (const int degree : {2, 4}) {
            for (const reuse r : {reuse::own, reuse::newest, reuse::extrapolated}) {
                if (degree == 2 && r == reuse::own) continue;  // the same as newest, bitwise
                add("para_step", degree, warm_up, history::shared, r);
            }
        }
        // What the paper's code does.
        if (scheduler == "unipc_flow") add("para_step", 4, warm_up, history::official, reuse::own);
    }
    for (const int degree : {2, 4}) {
        for (const reuse r : {reuse::newest, reuse::extrapolated}) {
            add("batch_step", degree, 5, history::shared, r);
        }
    }
    return out;
}

void print_table(const json& seeds) {
    std::printf(
        "\n| scheduler | variant | critical-path calls | mean | worst | best |\n"
        "|---|---|---|---|---|---|\n");
    for (const std::string& scheduler : schedulers) {
        for (const variant& v : variants(scheduler)) {
            std::vector<double> psnr;
            index_t calls = 0;
            for (const auto& [seed, rows] : seeds.items()) {
                const json& row = rows.at(scheduler).at(v.name());
                psnr.push_back(row.at("psnr_db"));
                calls = row.at("critical_path_calls");
            }
            const auto s = bench::statistics::of(psnr);
            std::printf("| `%s` | %s | %ld | %.1f | %.1f | %.1f |\n", scheduler.c_str(),
                        v.name().c_str(), static_cast<long>(calls), s.mean, s.least, s.most);
        }
    }
}

/// How much nearer `b` is than `a` in decibels, seed by seed: mean and its standard error.
void print_comparison(const json& seeds, const char* title,
                      const std::function<bool(const variant&, const variant&)>& pairs) {
    std::vector<double> gains;
    for (const auto& [seed, rows] : seeds.items()) {
        for (const std::string& scheduler : schedulers) {
            const auto all = variants(scheduler);
            for (const variant& a : all) {
                for (const variant& b : all) {
                    if (a.policy != "para_step" || a.policy != b.policy || a.degree != b.degree ||
                        a.options.warm_up != b.options.warm_up || !pairs(a, b)) {
                        continue;
                    }
                    gains.push_back(rows.at(scheduler).at(b.name()).at("psnr_db").get<double>() -
                                    rows.at(scheduler).at(a.name()).at("psnr_db").get<double>());
                }
            }
        }
    }
    const auto nearer = std::count_if(gains.begin(), gains.end(), [](double g) { return g > 0; });
    const auto s = bench::statistics::of(gains);
    std::printf("%s: %+.2f dB, standard error %.2f, nearer in %ld of %zu\n", title, s.mean,
                s.standard_error(), static_cast<long>(nearer), s.count);
}

void print_comparisons(const json& seeds) {
    using loop::history;
    using loop::reuse;
    std::printf("\n");
    for (const int degree : {2, 4}) {
        for (const auto& [from, to] :
             {std::pair(reuse::own, reuse::newest), std::pair(reuse::newest, reuse::extrapolated),
              std::pair(reuse::own, reuse::extrapolated)}) {
            if (degree == 2 && from == reuse::own) continue;
            const std::string title =
                detail::concat("p=", degree, ", from ", name_of(from), " to ", name_of(to));
            print_comparison(seeds, title.c_str(), [&](const variant& a, const variant& b) {
                return a.degree == degree && a.options.history == history::shared &&
                       b.options.history == history::shared && a.options.reuse == from &&
                       b.options.reuse == to;
            });
        }
    }
    print_comparison(seeds, "p=4, unipc_flow, own, from official to shared",
                     [](const variant& a, const variant& b) {
                         return a.options.history == history::official &&
                                b.options.history == history::shared &&
                                b.options.reuse == reuse::own;
                     });
}

}  // namespace

int main(int argc, char** argv) try {
    generate::options options;
    options.quiet = true;
    options.frames = 8;
    int first = 0;
    int seeds = bench::prompts;
    int threads = static_cast<int>(std::thread::hardware_concurrency());
    std::string results = "para_step_quality.json";
    std::vector<std::string> notes;
    CLI::App app("PSNR of ParaStep and BatchStep against one step after the other");
    app.add_option("--seeds", seeds, "Seed s samples prompt s mod 8")->capture_default_str();
    app.add_option("--first", first, "The first seed; earlier ones are taken from --results")
        ->capture_default_str();
    app.add_option("--steps", options.steps)->capture_default_str();
    app.add_option("--frames", options.frames)->capture_default_str();
    app.add_option("--size", options.height, "Height and width in pixels")->capture_default_str();
    app.add_option("--weights", options.weights);
    app.add_option("--threads", threads)->capture_default_str();
    app.add_option("--results", results,
                   "JSON, rewritten after every sample; what it holds is not run again")
        ->capture_default_str();
    app.add_option("--note", notes, "KEY=TEXT to keep in the JSON, such as commit=...");
    CLI11_PARSE(app, argc, argv);
    options.width = options.height;

    json all = {{"benchmark", "para_step_quality"},
                {"processor", bench::processor()},
                {"compiler", __VERSION__},
                {"steps", options.steps},
                {"guidance", options.guidance},
                {"frames", options.frames},
                {"pixels", {options.height, options.width}}};
    bench::add_notes(all, notes);
    all["seeds"] = json::object();
    bench::take_over(all, "seeds", results);

    for (int seed = first; seed < seeds; ++seed) {
        options.seed = static_cast<std::uint64_t>(seed);
        options.prompt = bench::prompt_of(seed);
        for (const std::string& scheduler : schedulers) {
            options.scheduler = scheduler;
            json& row = all["seeds"][std::to_string(seed)][scheduler];
            if (row.is_null()) row = json::object();
            const generate::job j = generate::prepare(options);
            remembering model(generate::guided_model(j, threads, {}));
            std::optional<latent> serial;
            for (const variant& v : variants(scheduler)) {
                if (row.contains(v.name())) continue;
                if (!serial) serial = sample_serially(model, j);
                const auto [result, calls] = v.sample(model, j);
                const auto alike =
                    generate::compare(j, result.view(), std::as_const(*serial).view());
                row[v.name()] = {{"psnr_db", alike.psnr_db},
                                 {"relative_error", alike.relative_error},
                                 {"critical_path_calls", calls}};
                bench::write(all, results);
                std::cout << "seed " << seed << ' ' << scheduler << ' ' << v.name() << "  "
                          << alike.psnr_db << " dB" << std::endl;
            }
            std::cout << "model calls: " << model.calls() << std::endl;
        }
    }
    print_table(all["seeds"]);
    print_comparisons(all["seeds"]);
    return 0;
} catch (const std::exception& error) {
    std::cerr << "para_step_quality: " << error.what() << '\n';
    return 1;
}

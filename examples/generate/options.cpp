// SPDX-License-Identifier: Apache-2.0
// The command line of latpar-generate.
#include <latpar/core/error.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/version.hpp>

#include <CLI/CLI.hpp>
#include <generate/options.hpp>

#include <map>

namespace generate {
namespace {

using latpar::axis;
using latpar::dtype;
using latpar::index_t;

/// N numbers between the letter x or commas, such as 16x21x60x104.
template <std::size_t N>
std::array<index_t, N> parse_numbers(const std::string& option, const std::string& text) {
    std::array<index_t, N> out{};
    std::size_t count = 0;
    std::string digits;
    bool good = true;
    for (const char c : text + 'x') {
        if (c >= '0' && c <= '9' && digits.size() < 9) {
            digits += c;
        } else if ((c == 'x' || c == ',') && !digits.empty() && count < N) {
            out[count++] = std::stoll(digits);
            digits.clear();
        } else {
            good = false;
        }
    }
    latpar::detail::require(good && count == N, option, " '", text, "' is not ", N,
                            " numbers such as 16x21x60x104");
    return out;
}

std::vector<axis> parse_rotation(const std::string& text) {
    std::vector<axis> out;
    for (const char c : text) {
        const auto at = std::string_view("THW").find(static_cast<char>(std::toupper(c)));
        latpar::detail::require(at != std::string_view::npos, "--rotation '", text,
                                "' names an axis that is none of T, H, W; write for example THW");
        out.push_back(latpar::all_axes[at]);
    }
    return out;
}

void check_outputs(const options& o) {
    for (const auto& path : o.outputs) {
        const std::string kind = path.extension().string();
        latpar::detail::require(kind == ".gif" || kind == ".png" || kind == ".safetensors",
                                "--output ", path.string(),
                                " has no known ending; use .gif, .png or .safetensors");
        const auto folder = std::filesystem::absolute(path).parent_path();
        latpar::detail::require(std::filesystem::is_directory(folder), "--output ", path.string(),
                                ": there is no folder ", folder.string(), "; create it first");
    }
}

}  // namespace

std::optional<options> parse_options(int argc, char** argv, int& status) {
    options out;
    latpar::latent_parallel_options& policy = out.latent_parallel;
    std::string latent;
    std::string patch;
    std::string rotation;
    std::string device = "cpu";
    std::string plan;
    CLI::App app(
        "Samples a video on one rank or many, and tells how alike and how costly they are.",
        "latpar-generate");
    app.set_version_flag(
        "--version", latpar::detail::concat(LATPAR_VERSION_MAJOR, '.', LATPAR_VERSION_MINOR, '.',
                                            LATPAR_VERSION_PATCH));
    app.get_formatter()->column_width(36);

    app.add_option("--prompt", out.prompt, "What to show, in the words of the model")
        ->capture_default_str();
    app.add_option("--text-embedding", out.text_embedding,
                   "A .safetensors with conditional and unconditional, [tokens, text_dim], in "
                   "place of the prompt")
        ->check(CLI::ExistingFile);
    app.add_option(
           "--weights", out.weights,
           "A Wan-architecture .safetensors or diffusers folder; the bundled model if not given")
        ->check(CLI::ExistingPath);
    app.add_option("--frames", out.frames, "Frames of the clip")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--height", out.height, "Pixels")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--width", out.width, "Pixels")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--latent", latent,
                   "CxTxHxW of the latent, in place of frames, height and width");
    app.add_option("--scheduler", out.scheduler, "The sampler")
        ->check(CLI::IsMember(std::vector<std::string>(latpar::schedule::names.begin(),
                                                       latpar::schedule::names.end())))
        ->capture_default_str();
    app.add_option("--steps", out.steps, "Denoising steps")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--guidance", out.guidance, "Scale of classifier-free guidance")
        ->capture_default_str();
    app.add_option("--seed", out.seed, "Of the noise; the same for any number of ranks")
        ->capture_default_str();

    const std::string parallel = "Parallelism";
    app.add_option("--mesh", out.mesh, "Axes and degrees, e.g. latent=4; none: one rank")
        ->group(parallel);
    app.add_option("--ranks", out.ranks,
                   "Ranks as threads of this process; default: the mesh's size")
        ->check(CLI::PositiveNumber)
        ->group(parallel);
    app.add_option("--threads", out.threads,
                   "Threads of each rank; default: the processor's, divided")
        ->check(CLI::PositiveNumber)
        ->group(parallel);
    app.add_option("--device", device, "Where to compute")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->capture_default_str()
        ->group(parallel);
    app.add_flag("--compare-serial", out.compare_serial, "Also run one rank alone and compare")
        ->group(parallel);

    const std::string lp = "LatentParallel";
    app.add_option("--overlap", out.overlap, "r: overlap on each side, in cores (default 0.5)")
        ->group(lp);
    app.add_option("--partition", policy.cores, "How cores are chosen (default balanced)")
        ->transform(CLI::CheckedTransformer(std::map<std::string, latpar::partition>{
            {"paper", latpar::partition::paper}, {"balanced", latpar::partition::balanced}}))
        ->group(lp);
    app.add_option("--layout", policy.layout, "Where the latent lives (default automatic)")
        ->transform(CLI::CheckedTransformer(std::map<std::string, latpar::latent_layout>{
            {"automatic", latpar::latent_layout::automatic},
            {"central", latpar::latent_layout::central},
            {"replicated", latpar::latent_layout::replicated},
            {"sharded", latpar::latent_layout::sharded}}))
        ->group(lp);
    const std::map<std::string, dtype> wires{
        {"f32", dtype::f32}, {"bf16", dtype::bf16}, {"f16", dtype::f16}};
    app.add_option("--wire-prediction", policy.wire_prediction,
                   "What predictions travel as (default f32)")
        ->transform(CLI::CheckedTransformer(wires))
        ->group(lp);
    app.add_option("--wire-state", policy.wire_state, "What the latent travels as (default f32)")
        ->transform(CLI::CheckedTransformer(wires))
        ->group(lp);
    app.add_option("--rotation", rotation, "Axes to cut in turn (default THW)")->group(lp);
    app.add_option("--patch", patch, "The model's patch, for plans without weights, e.g. 1,2,2")
        ->group(lp);

    const std::string results = "Results";
    app.add_option("--output", out.outputs,
                   "Where to write: .gif, .png (contact sheet) or .safetensors (latent)")
        ->group(results);
    app.add_option("--fps", out.frames_per_second, "Frames a second of a .gif")
        ->check(CLI::Range(1.0, 50.0))
        ->capture_default_str()
        ->group(results);
    app.add_option("--report", out.report, "Write the figures as JSON")->group(results);
    app.add_flag("--plan{table}", plan, "Print the plan and run nothing; --plan=json for JSON")
        ->group(results);
    app.add_flag("--quiet", out.quiet, "No progress and no summary")->group(results);

    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        status = app.exit(error);
        return std::nullopt;
    }
    using latpar::detail::require;
    require(device == "cpu", "--device cuda is not part of this build; use --device cpu");
    require(plan.empty() || plan == "table" || plan == "json", "--plan=", plan,
            " is no format; use table or json");
    if (!plan.empty()) out.plan = plan == "json" ? plan_format::json : plan_format::table;
    if (!latent.empty()) out.latent = parse_numbers<4>("--latent", latent);
    if (!patch.empty()) out.patch = parse_numbers<3>("--patch", patch);
    if (!rotation.empty()) policy.rotation = parse_rotation(rotation);
    check_outputs(out);
    return out;
}

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// The command line of latpar-generate.
#include <latpar/core/error.hpp>
#include <latpar/loop/batch_step_plan.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/version.hpp>

#include <CLI/CLI.hpp>
#include <generate/options.hpp>
#include <generate/video_plan.hpp>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <set>

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

/// A file that is to be written when all the work is done must be writable before.
void require_writable(const std::string& option, const std::filesystem::path& path) {
    namespace fs = std::filesystem;
    using latpar::detail::require;
    const fs::path folder = fs::absolute(path).parent_path();
    require(fs::is_directory(folder), option, ' ', path.string(), ": there is no folder ",
            folder.string(), "; create it first");
    require(!fs::is_directory(path), option, ' ', path.string(), " is a folder; name a file");
    const fs::path touched = fs::exists(path) ? path : folder;
    require(access(touched.c_str(), W_OK) == 0, option, ' ', path.string(), ": ", touched.string(),
            " may not be written; choose another place");
}

void check_files(const options& o) {
    for (const auto& path : o.outputs) {
        const std::string kind = path.extension().string();
        latpar::detail::require(kind == ".gif" || kind == ".png" || kind == ".safetensors",
                                "--output ", path.string(),
                                " has no known ending; use .gif, .png or .safetensors");
        require_writable("--output", path);
    }
    if (!o.report.empty()) require_writable("--report", o.report);
    if (!o.video.save_state.empty()) require_writable("--save-state", o.video.save_state);
    // A state may replace the one that it goes on from.
    std::vector<std::filesystem::path> files = o.outputs;
    files.push_back(o.report);
    files.push_back(o.video.save_state);
    if (o.video.resume != o.video.save_state) files.push_back(o.video.resume);
    std::set<std::filesystem::path> names;
    for (const auto& file : files) {
        if (file.empty()) continue;
        latpar::detail::require(names.insert(std::filesystem::weakly_canonical(file)).second,
                                file.string(), " is named for two files; give each its own name");
    }
}

/// What goes with the axis stage alone.
constexpr std::array<const char*, 7> video_option_names{
    "--block-latents", "--cat-latents", "--total-latents", "--noise",
    "--save-state",    "--resume",      "--stop-after"};

/// Refuses what has no meaning with the axis stage, or without it.
void check_video(const CLI::App& app, const options& o) {
    using latpar::detail::require;
    if (!is_long_video(o)) {
        for (const char* name : video_option_names) {
            require(app.count(name) == 0, name, ' ', app[name]->as<std::string>(),
                    " belongs to long videos, which the axis stage makes; add stage to --mesh, "
                    "such as stage=4, or leave ",
                    name, " out");
        }
        return;
    }
    require(o.batch_step == 0, "--batch-step ", o.batch_step,
            " batches the steps of one latent, and the blocks of --mesh ", o.mesh,
            " have a step each; leave one of them out");
    for (const char* name : {"--overlap", "--partition", "--layout", "--rotation", "--wire-state",
                             "--warm-up", "--reuse", "--history"}) {
        require(app.count(name) == 0, name, ' ', app[name]->as<std::string>(),
                " belongs to an axis that does not go with stage; leave it out");
    }
    require(!o.compare_serial || o.video.stop_after == 0, "--stop-after ", o.video.stop_after,
            " ends the video early, and --compare-serial compares whole ones; leave one of them "
            "out");
    const index_t total = delivered_latents(o);
    require(app.count("--frames") == 0 || app.count("--total-latents") == 0 || o.frames == total,
            "--frames ", o.frames, " and --total-latents ", total,
            " both say how long the video is; leave one of them out");
    require(!o.latent || (*o.latent)[1] == total,
            "--latent with T = ", o.latent ? (*o.latent)[1] : 0, " and --total-latents ", total,
            " both say how long the video is; leave --total-latents out, or write T = ", total,
            " (a window has the ", o.video.block_latents + o.video.cat_latents,
            " latents of --block-latents and --cat-latents)");
    if (total > 0) return;
    for (const auto& path : o.outputs) {
        require(path.extension() == ".gif", "--output ", path.string(),
                " needs to know where the video ends, and --total-latents 0 has no end; use .gif");
    }
    require(!o.compare_serial,
            "--compare-serial keeps the video in memory, and --total-latents 0 has no end; give "
            "--total-latents a number");
}

/// Refuses what belongs to an axis that the mesh does not name.
void check_axes(const CLI::App& app, const options& o) {
    struct owned {
        const char* name;
        std::vector<std::string_view> axes;
    };
    const std::array<owned, 9> all{{{"--warm-up", {"step"}},
                                    {"--reuse", {"step"}},
                                    {"--history", {"step"}},
                                    {"--overlap", {"latent"}},
                                    {"--partition", {"latent"}},
                                    {"--layout", {"latent"}},
                                    {"--rotation", {"latent"}},
                                    {"--wire-prediction", {"step", "guidance", "latent", "stage"}},
                                    {"--wire-state", {"step", "latent"}}}};
    const auto shape = latpar::mesh_shape::parse(o.mesh);
    for (const auto& [name, axes] : all) {
        // Batches of steps have one rank, so that nothing of theirs travels.
        const bool is_wire = std::string_view(name).starts_with("--wire");
        const bool is_used = std::ranges::any_of(axes, [&](std::string_view axis) {
            return (axis == "step" && o.batch_step > 0 && !is_wire) ||
                   std::ranges::count(shape.axes(), axis, &latpar::mesh_axis::name) > 0;
        });
        std::string wanted;
        for (const std::string_view axis : axes) {
            wanted += latpar::detail::concat(wanted.empty() ? "" : " or ", axis);
        }
        const std::string given =
            o.mesh.empty() ? "and there is no --mesh" : "which --mesh " + o.mesh + " does not name";
        latpar::detail::require(app.count(name) == 0 || is_used, name, ' ',
                                app[name]->as<std::string>(), " belongs to the axis ", wanted, ", ",
                                given, "; use it with --mesh ", axes.front(),
                                "=2, for example, or leave ", name, " out");
    }
}

std::uint64_t parse_seed(const std::string& text) {
    std::uint64_t out = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    latpar::detail::require(error == std::errc() && end == text.data() + text.size(), "--seed '",
                            text, "' is not a whole number from 0 to ",
                            std::numeric_limits<std::uint64_t>::max());
    return out;
}

template <class T>
std::vector<std::string> names_of(const std::map<std::string, T>& values) {
    std::vector<std::string> out;
    for (const auto& [name, value] : values) out.push_back(name);
    return out;
}

const std::map<std::string, latpar::partition> partitions{
    {"paper", latpar::partition::paper}, {"balanced", latpar::partition::balanced}};
const std::map<std::string, latpar::latent_layout> layouts{
    {"automatic", latpar::latent_layout::automatic},
    {"central", latpar::latent_layout::central},
    {"replicated", latpar::latent_layout::replicated},
    {"sharded", latpar::latent_layout::sharded}};
const std::map<std::string, latpar::loop::reuse> reuses{
    {"own", latpar::loop::reuse::own},
    {"newest", latpar::loop::reuse::newest},
    {"extrapolated", latpar::loop::reuse::extrapolated}};
const std::map<std::string, latpar::loop::history> histories{
    {"official", latpar::loop::history::official}, {"shared", latpar::loop::history::shared}};
const std::map<std::string, dtype> wires{
    {"f32", dtype::f32}, {"bf16", dtype::bf16}, {"f16", dtype::f16}};
const std::map<std::string, device_kind> devices{{"cpu", device_kind::cpu},
                                                 {"cuda", device_kind::cuda}};
const std::map<std::string, dtype> precisions{{"f32", dtype::f32}, {"bf16", dtype::bf16}};
const std::map<std::string, transport> backends{
    {"auto", transport::automatic}, {"nccl", transport::nccl}, {"staged", transport::staged}};

/// Refuses what has no meaning where the ranks compute.
void check_device(const CLI::App& app, const options& o) {
    using latpar::detail::require;
    if (o.device == device_kind::cuda) {
        require(app.count("--threads") == 0, "--threads ", o.threads,
                " are those of the processor, and --device cuda computes on GPUs; leave one of "
                "them out");
        return;
    }
    require(o.precision == dtype::f32,
            "--precision bf16 is that of the model on a GPU, and --device cpu computes in f32; add "
            "--device cuda, or leave --precision out");
    require(app.count("--backend") == 0, "--backend ", app["--backend"]->as<std::string>(),
            " is between GPUs, and --device cpu has none; add --device cuda, or leave --backend "
            "out");
}

}  // namespace

std::optional<options> parse_options(int argc, char** argv, int& status) {
    options out;
    latpar::latent_parallel_options& policy = out.latent_parallel;
    std::string latent;
    std::string patch;
    std::string rotation;
    std::string device = "cpu";
    std::string precision = "f32";
    std::string backend = "auto";
    std::string plan;
    std::string seed = "6";
    std::string cores = "balanced";
    std::string layout = "automatic";
    std::string reuse(name_of(out.para_step.reuse));
    std::string history(name_of(out.para_step.history));
    std::string noise = "coordinated";
    index_t total_latents = 0;
    std::string wire_prediction = "f32";
    std::string wire_state = "f32";
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
        ->check(CLI::Range(1, 1000000))
        ->capture_default_str();
    app.add_option("--height", out.height, "Pixels")
        ->check(CLI::Range(1, 1000000))
        ->capture_default_str();
    app.add_option("--width", out.width, "Pixels")
        ->check(CLI::Range(1, 1000000))
        ->capture_default_str();
    app.add_option("--latent", latent,
                   "CxTxHxW of the latent, in place of frames, height and width");
    app.add_option("--scheduler", out.scheduler, "The sampler")
        ->check(CLI::IsMember(std::vector<std::string>(latpar::schedule::names.begin(),
                                                       latpar::schedule::names.end())))
        ->capture_default_str();
    app.add_option("--steps", out.steps, "Denoising steps")
        ->check(CLI::Range(1, 100000))
        ->capture_default_str();
    app.add_option("--guidance", out.guidance, "Scale of classifier-free guidance")
        ->capture_default_str();
    app.add_option("--seed", seed, "Of the noise; the same for any number of ranks")
        ->capture_default_str();

    const std::string parallel = "Parallelism";
    app.add_option("--mesh", out.mesh,
                   "Axes and degrees, of step, guidance, latent, ring and ulysses, e.g. "
                   "guidance=2,latent=4; for long videos of stage, alone or with guidance, ring "
                   "and ulysses; none: one rank")
        ->group(parallel);
    app.add_option("--ranks", out.ranks,
                   "Ranks as threads of this process; default: the mesh's size")
        ->check(CLI::Range(1, 1024))
        ->group(parallel);
    app.add_option("--threads", out.threads,
                   "Threads of each rank on the processor; default: all of them, divided")
        ->check(CLI::Range(1, 1024))
        ->group(parallel);
    app.add_option("--device", device,
                   "Where to compute: on the processor, or on GPUs, rank r of a host on device r, "
                   "modulo their number")
        ->check(CLI::IsMember(names_of(devices)))
        ->capture_default_str()
        ->group(parallel);
    app.add_option("--precision", precision,
                   "Of the model's matrices and activations; bf16 with --device cuda")
        ->check(CLI::IsMember(names_of(precisions)))
        ->capture_default_str()
        ->group(parallel);
    app.add_option("--backend", backend,
                   "Between GPUs: NCCL, for ranks with a device each, or staged through host "
                   "memory; auto: NCCL where it can be")
        ->check(CLI::IsMember(names_of(backends)))
        ->capture_default_str()
        ->group(parallel);
    app.add_option("--wire-prediction", wire_prediction, "What predictions travel as")
        ->check(CLI::IsMember(names_of(wires)))
        ->capture_default_str()
        ->group(parallel);
    app.add_option("--wire-state", wire_state, "What the latent travels as")
        ->check(CLI::IsMember(names_of(wires)))
        ->capture_default_str()
        ->group(parallel);
    app.add_flag(
           "--compare-serial", out.compare_serial,
           "Also run one rank alone and compare; a long video, on one stage, is kept in memory")
        ->group(parallel);

    const std::string ps = "ParaStep (axis step) and BatchStep";
    app.add_option("--warm-up", out.para_step.warm_up, "M: steps that are done one by one at first")
        ->check(CLI::Range(1, 100000))
        ->capture_default_str()
        ->group(ps);
    app.add_option("--reuse", reuse, "The prediction with which a rank steps on to its own call")
        ->check(CLI::IsMember(names_of(reuses)))
        ->capture_default_str()
        ->group(ps);
    app.add_option("--history", history, "What becomes of a multistep sampler's history")
        ->check(CLI::IsMember(names_of(histories)))
        ->capture_default_str()
        ->group(ps);
    app.add_option("--batch-step", out.batch_step,
                   "p: steps in one batch of the model, on one rank; no axis step")
        ->check(CLI::Range(1, 1024))
        ->group(ps);

    const std::string lp = "LatentParallel (axis latent)";
    app.add_option("--overlap", policy.overlap, "r: overlap on each side, in cores")
        ->capture_default_str()
        ->group(lp);
    app.add_option("--partition", cores, "How cores are chosen")
        ->check(CLI::IsMember(names_of(partitions)))
        ->capture_default_str()
        ->group(lp);
    app.add_option("--layout", layout, "Where the latent lives")
        ->check(CLI::IsMember(names_of(layouts)))
        ->capture_default_str()
        ->group(lp);
    app.add_option("--rotation", rotation, "Axes to cut in turn (default THW)")->group(lp);
    app.add_option("--patch", patch, "The model's patch, for plans without weights, e.g. 1,2,2")
        ->group(lp);

    const std::string dp = "DualParal (axis stage): long videos";
    app.add_option("--block-latents", out.video.block_latents, "B: latents of a block")
        ->check(CLI::Range(1, 1000000))
        ->capture_default_str()
        ->group(dp);
    app.add_option("--cat-latents", out.video.cat_latents,
                   "C: latents that a block sees of each neighbour, 0 to B")
        ->check(CLI::Range(0, 1000000))
        ->capture_default_str()
        ->group(dp);
    app.add_option("--total-latents", total_latents,
                   "Latents of the video; 0: no end, Ctrl-C stops; default: those of --frames or "
                   "--latent")
        ->check(CLI::Range(index_t{0}, index_t{1000000000}))
        ->group(dp);
    app.add_option("--noise", noise,
                   "Of blocks: from one pool, so that neighbours go together, or independent")
        ->check(CLI::IsMember({"coordinated", "independent"}))
        ->capture_default_str()
        ->group(dp);
    app.add_option("--save-state", out.video.save_state,
                   "Where to write what it takes to go on, if the video is stopped: .safetensors")
        ->group(dp);
    app.add_option("--resume", out.video.resume,
                   "Go on from such a file, on any mesh; outputs get the latents from there on")
        ->check(CLI::ExistingFile)
        ->group(dp);
    app.add_option("--stop-after", out.video.stop_after,
                   "Stop after so many iterations, as Ctrl-C would: the next one is still done")
        ->check(CLI::Range(1, 1000000000))
        ->group(dp);

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
    if (app.count("--total-latents") > 0) out.video.total_latents = total_latents;
    out.video.independent_noise = noise == "independent";
    out.device = devices.at(device);
    out.precision = precisions.at(precision);
    out.backend = backends.at(backend);
    require(plan.empty() || plan == "table" || plan == "json", "--plan=", plan,
            " is no format; use table or json");
    if (!plan.empty()) out.plan = plan == "json" ? plan_format::json : plan_format::table;
    if (!latent.empty()) out.latent = parse_numbers<4>("--latent", latent);
    if (!patch.empty()) out.patch = parse_numbers<3>("--patch", patch);
    if (!rotation.empty()) policy.rotation = parse_rotation(rotation);
    out.seed = parse_seed(seed);
    policy.cores = partitions.at(cores);
    policy.layout = layouts.at(layout);
    policy.wire_prediction = out.para_step.wire_prediction = wires.at(wire_prediction);
    policy.wire_state = out.para_step.wire_state = wires.at(wire_state);
    out.para_step.reuse = reuses.at(reuse);
    if (out.batch_step > 0 && app.count("--reuse") == 0) {
        out.para_step.reuse = latpar::loop::batch_step_options{}.reuse;
    }
    out.para_step.history = histories.at(history);
    require(out.batch_step == 0 || history == "shared",
            "--history official lets ranks drift apart, and --batch-step ", out.batch_step,
            " has one rank; use --history shared");
    policy.result_everywhere = false;
    require(std::isfinite(out.guidance), "--guidance ", out.guidance,
            " is no number to scale with");
    require(patch.empty() || (out.plan != plan_format::none && out.latent),
            "--patch goes with --plan "
            "and --latent; otherwise the weights bring it");
    check_device(app, out);
    check_video(app, out);
    check_axes(app, out);
    check_files(out);
    return out;
}

}  // namespace generate

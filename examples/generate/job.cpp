// SPDX-License-Identifier: Apache-2.0
// What all ranks work on: the model, its text, the shapes and the schedule.
#include <latpar/io/safetensors.hpp>
#include <latpar/schedule/by_name.hpp>

#include <generate/job.hpp>
#include <moving_shapes/prompt.hpp>
#include <wan/sequence_parallel.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>

namespace generate {
namespace {

using latpar::index_t;
using latpar::detail::require;

constexpr const char* file_name = "moving_shapes.safetensors";

std::filesystem::path weights_of(const options& wanted) {
    return wanted.weights.empty() ? bundled_weights() : wanted.weights;
}

/// No layers: what the configuration and the checks of a file take.
const wan::load_options no_layers{.layers = {0, 0}};

/// The file of a model, which may also be a folder of several.
std::optional<latpar::safetensors_file> file_of(const std::filesystem::path& path) {
    if (!std::filesystem::is_regular_file(path)) return std::nullopt;
    return latpar::safetensors_file::open(path);
}

/// The decoder that it brings, if it does.
std::optional<moving_shapes::decoder> decoder_of(
    const std::optional<latpar::safetensors_file>& file) {
    if (!file || !file->find("latent.decode.weight")) return std::nullopt;
    return moving_shapes::decoder::load(*file);
}

/// [1, C, T, H, W].
std::array<index_t, 5> latent_extents(const options& wanted, const wan::config& config,
                                      const std::optional<moving_shapes::decoder>& decoder) {
    if (wanted.latent) {
        const auto [c, t, h, w] = *wanted.latent;
        require(c == config.in_channels && c == config.out_channels, "--latent has ", c,
                " channels, the model ", config.in_channels, "; use that many");
        return {1, c, t, h, w};
    }
    require(
        decoder.has_value(), "nothing here decodes the latent of ", weights_of(wanted).string(),
        ", so its size does not follow from that of a clip; give --latent CxTxHxW (of Wan 2.1: ",
        config.in_channels, " x (frames + 3) / 4 x height / 8 x width / 8)");
    const index_t block = decoder->block();
    for (const auto& [name, pixels] :
         {std::pair("--height", wanted.height), std::pair("--width", wanted.width)}) {
        require(pixels % block == 0, name, ' ', pixels, " is not a multiple of the ", block,
                " pixels of a latent position; use ",
                std::max<index_t>(1, (pixels + block / 2) / block) * block);
    }
    return {1, config.in_channels, delivered_latents(wanted), wanted.height / block,
            wanted.width / block};
}

/// A model as plans name it.
std::string text_of(const options& wanted, const wan::config& config) {
    return latpar::detail::concat(wanted.weights.empty() ? "the bundled one, " : "",
                                  config.num_layers, " layers with ", config.num_attention_heads,
                                  " heads of ", config.attention_head_dim);
}

/// A configuration alone, without weights.
bool is_config(const std::filesystem::path& path) {
    return path.extension() == ".json";
}

/// What a plan takes of a model, of which no layers are loaded.
struct planned_model {
    explicit planned_model(const options& wanted) {
        const std::filesystem::path path = weights_of(wanted);
        if (is_config(path)) {
            std::ifstream file(path);
            const std::string text{std::istreambuf_iterator<char>(file), {}};
            require<latpar::io_error>(file.good() || file.eof(), path.string(), " cannot be read");
            config = wan::parse_config(text, path.string());
            extents = latent_extents(wanted, config, std::nullopt);
        } else {
            config = wan::load_weights(path, no_layers)->config;
            extents = latent_extents(wanted, config, decoder_of(file_of(path)));
        }
        text = text_of(wanted, config);
    }

    std::string text;
    wan::config config;
    std::array<index_t, 5> extents;
};

std::vector<float> read_text(const latpar::safetensors_file& file, std::string_view name,
                             index_t width) {
    const latpar::safetensors_entry& entry = file.at(name);
    require<latpar::io_error>(!entry.shape.empty() && entry.shape.back() == width,
                              file.path().string(), ": '", name,
                              "' must end in the model's text_dim ", width);
    return latpar::to_float32(entry);
}

}  // namespace

std::filesystem::path bundled_weights() {
    std::error_code error;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
    const std::vector<std::filesystem::path> candidates{
        program.parent_path() / LATPAR_DATA_FROM_BIN / file_name,
        std::filesystem::path(LATPAR_SOURCE_DATA) / file_name};
    for (const auto& path : candidates) {
        if (std::filesystem::exists(path)) return path;
    }
    throw latpar::io_error(latpar::detail::concat("the bundled weights are neither at ",
                                                  candidates[0].string(), " nor at ",
                                                  candidates[1].string(), "; give --weights"));
}

run_plan job::plan() const {
    return plan_run(options, latpar::latent_problem::of(extents, schedule),
                    weights->config.patch_size,
                    wan::transformer_shape_of(weights->config, options.precision));
}

video_plan job::plan_of_video() const {
    return plan_video(options, extents, schedule, weights->config);
}

std::vector<std::pair<std::string, std::string>> job::identity() const {
    const bool has_embedding = !options.text_embedding.empty();
    return {{"--weights", model_name},
            {has_embedding ? "--text-embedding" : "--prompt",
             has_embedding ? options.text_embedding.filename().string() : options.prompt},
            {"--precision", std::string(latpar::name_of(options.precision))},
            {"--seed", std::to_string(options.seed)},
            {"--noise", options.video.independent_noise ? "independent" : "coordinated"}};
}

std::shared_ptr<const wan::weights> job::all_weights() const {
    const wan::layer_range& here = weights->layers;
    const bool all = here.first == 0 && here.last == weights->config.num_layers;
    return all ? weights : wan::load_weights(weights_of(options));
}

video_plan plan_video_only(const options& wanted) {
    static_cast<void>(mesh_of(wanted));
    require(!wanted.patch, "--patch is not enough for --plan of the mesh ", wanted.mesh,
            ", which needs the model's layers and width; leave it out, and give --weights, which "
            "may be a config.json");
    const planned_model model(wanted);
    video_plan out =
        plan_video(wanted, model.extents, latpar::schedule::by_name(wanted.scheduler, wanted.steps),
                   model.config);
    out.model = model.text;
    return out;
}

run_plan plan_only(const options& wanted) {
    const auto shape = mesh_of(wanted);
    const auto schedule = latpar::schedule::by_name(wanted.scheduler, wanted.steps);
    if (!wanted.patch) {
        const planned_model model(wanted);
        run_plan out = plan_run(wanted, latpar::latent_problem::of(model.extents, schedule),
                                model.config.patch_size,
                                wan::transformer_shape_of(model.config, wanted.precision));
        out.model = model.text;
        return out;
    }
    require(shape.degree("ring") * shape.degree("ulysses") == 1, "--plan of the mesh ", shape,
            " needs the model's heads and layers; leave --patch out, and give --weights, which may "
            "be a config.json");
    const auto [c, t, h, w] = *wanted.latent;
    return plan_run(wanted, latpar::latent_problem::of({1, c, t, h, w}, schedule), *wanted.patch,
                    {});
}

job prepare(const options& wanted, std::optional<int> rank) {
    static_cast<void>(mesh_of(wanted));
    const auto path = weights_of(wanted);
    require(!is_config(path), "--weights ", path.string(),
            " is a configuration without weights; use it with --plan, or give a .safetensors file "
            "or a folder");
    // Which layers are whose is known when the plan is.
    const bool in_stages = is_long_video(wanted) && rank;
    job out{wanted,
            {},
            latpar::schedule::by_name(wanted.scheduler, wanted.steps),
            path.stem().string(),
            wan::load_weights(path, in_stages ? no_layers : wan::load_options{}),
            {},
            {},
            {}};
    const wan::config& config = out.weights->config;

    const auto file = file_of(path);
    out.decoder = decoder_of(file);
    if (!wanted.text_embedding.empty()) {
        const auto text = latpar::safetensors_file::open(wanted.text_embedding);
        out.conditional = read_text(text, "conditional", config.text_dim);
        out.unconditional = read_text(text, "unconditional", config.text_dim);
    } else {
        require(file && file->find("prompt.tokens"), path.string(),
                " has no table of words: give --text-embedding in place of the prompt");
        auto text = moving_shapes::prompt_reader::load(*file).embed(wanted.prompt);
        const auto c = text.conditional.elements<float>();
        const auto u = text.unconditional.elements<float>();
        out.conditional.assign(c.begin(), c.end());
        out.unconditional.assign(u.begin(), u.end());
    }
    for (const auto& output : wanted.outputs) {
        require(out.decoder || output.extension() == ".safetensors", "--output ", output.string(),
                ": nothing here decodes the latent of ", path.string(),
                "; write it as .safetensors");
    }
    out.extents = latent_extents(wanted, config, out.decoder);
    if (!is_long_video(wanted)) {
        static_cast<void>(out.plan());
        return out;
    }
    const video_plan plan = out.plan_of_video();
    if (in_stages) {
        const auto stage = static_cast<std::size_t>(plan.stage_of(*rank));
        const latpar::loop::layer_range own = plan.of(*rank).stages[stage];
        out.weights = wan::load_weights(path, {.layers = {own.first, own.last}});
    }
    return out;
}

likeness compare(const job& j, latpar::const_latent_view result, latpar::const_latent_view serial) {
    const auto squared_distance = [](auto a, auto b) {
        double sum = 0;
        for (std::size_t i = 0; i < a.size(); ++i) {
            const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
            sum += d * d;
        }
        return sum;
    };
    const auto psnr = [](double mean_squared, double peak) {
        return mean_squared <= 0 ? 100.0
                                 : std::min(100.0, 10 * std::log10(peak * peak / mean_squared));
    };
    const std::span a(result.as<float>(), static_cast<std::size_t>(result.elements()));
    const std::span b(serial.as<float>(), static_cast<std::size_t>(serial.elements()));
    const double squared = squared_distance(a, b);
    latpar::detail::require<latpar::error>(
        std::isfinite(squared),
        "the latent holds values that are not finite; a smaller --guidance or more "
        "--steps may help");
    double norm = 0;
    for (const float x : b) norm += static_cast<double>(x) * x;
    likeness out;
    out.relative_error = std::sqrt(squared / norm);
    if (j.decoder) {
        const media::rgb_video here = j.decoder->decode(result);
        const media::rgb_video alone = j.decoder->decode(serial);
        const auto count = static_cast<double>(here.data.size());
        out.psnr_db =
            psnr(squared_distance(std::span(here.data), std::span(alone.data)) / count, 255);
    } else {
        const auto [low, high] = std::minmax_element(b.begin(), b.end());
        out.psnr_db = psnr(squared / static_cast<double>(b.size()), *high - *low);
    }
    return out;
}

void write_outputs(const job& j, latpar::const_latent_view result,
                   const latpar::const_latent_view* serial) {
    for (const auto& path : j.options.outputs) {
        if (path.extension() == ".safetensors") {
            latpar::safetensors_writer writer;
            writer.add("latent", result);
            writer.set_metadata("prompt", j.options.prompt);
            writer.set_metadata("seed", std::to_string(j.options.seed));
            writer.write(path);
        } else if (path.extension() == ".gif") {
            media::write_gif(path, j.decoder->decode(result), j.options.frames_per_second);
        } else {
            std::vector<media::rgb_video> rows{j.decoder->decode(result)};
            if (serial) rows.insert(rows.begin(), j.decoder->decode(*serial));
            media::write_contact_sheet(path, rows, std::min<index_t>(8, rows[0].frames));
        }
    }
}

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// Whether the blocks of DualParal show, on the bundled model: how much pixels change from frame to
// frame across the border of two blocks, against within blocks, over context and noise.
#include <latpar/comm/self.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <CLI/CLI.hpp>
#include <bundled_model.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <thread>

using namespace latpar;
using bench::json;

namespace {

/// Noise of its own for every block.
struct independent_noise {
    philox_noise source;
    void operator()(index_t block, latent_view out, stream_ref stream) const {
        source.fill(out, {{0, 0, 0}, spatial_extents(out)}, {0, block}, stream);
    }
};

struct variant {
    index_t cat_latents;
    bool coordinated;

    [[nodiscard]] std::string name() const {
        return detail::concat("C=", cat_latents, coordinated ? " coordinated" : " independent");
    }
};

/// All, or those that are named.
std::vector<variant> variants(const std::vector<std::string>& only) {
    std::vector<variant> out;
    for (const bool coordinated : {true, false}) {
        for (const index_t cat : {0, 2, 4, 8}) {
            const variant v{cat, coordinated};
            if (only.empty() || std::ranges::count(only, v.name()) > 0) out.push_back(v);
        }
    }
    return out;
}

/// A decoded video, and the first frame of each block but the first.
struct clip {
    media::rgb_video video;
    std::vector<index_t> borders;
};

/// So many blocks behind the first C frames: 8 frames each, the first with C more.
clip sample(const generate::job& j, const variant& v, index_t block_latents, index_t blocks,
            int threads) {
    loop::dual_paral_options options;
    options.block_latents = block_latents;
    options.cat_latents = v.cat_latents;
    options.total_latents = v.cat_latents + blocks * block_latents;
    const auto plan = bench::plan_dual_paral(j, options, 1);
    self_communicator comm;
    auto model = bench::staged_model(j, threads);
    loop::dual_paral loop(model, comm, j.schedule,
                          guidance_rule::classifier_free(j.options.guidance), plan);
    clip out;
    for (index_t block = 1; block < plan.blocks(); ++block) {
        out.borders.push_back(plan.first_latent_of(block));
    }
    const auto take = [&](const_latent_view frames, index_t) {
        const media::rgb_video part = j.decoder->decode(frames);
        out.video.frames += part.frames;
        out.video.height = part.height;
        out.video.width = part.width;
        out.video.data.insert(out.video.data.end(), part.data.begin(), part.data.end());
    };
    if (v.coordinated) {
        loop.run(coordinated_noise(j.options.seed, block_latents, v.cat_latents), take);
    } else {
        loop.run(independent_noise{philox_noise(j.options.seed)}, take);
    }
    return out;
}

/// Mean absolute difference of two frames, in levels of 255.
double change(const media::rgb_video& video, index_t frame) {
    const auto from = video.frame(frame - 1);
    const auto to = video.frame(frame);
    double sum = 0;
    for (std::size_t i = 0; i < to.size(); ++i) sum += std::abs(int{to[i]} - int{from[i]});
    return sum / static_cast<double>(to.size());
}

json measure(const clip& c) {
    std::vector<double> across;
    std::vector<double> within;
    for (index_t frame = 1; frame < c.video.frames; ++frame) {
        const bool border = std::ranges::find(c.borders, frame) != c.borders.end();
        (border ? across : within).push_back(change(c.video, frame));
    }
    const auto borders = bench::statistics::of(across);
    const auto inside = bench::statistics::of(within);
    return {{"levels_within", inside.mean},
            {"levels_across", borders.mean},
            {"ratio", borders.mean / inside.mean},
            {"largest_ratio", borders.most / inside.mean},
            {"largest_ratio_within", inside.most / inside.mean}};
}

/// The `count` frames before a border and as many from it on, with the border in red.
media::rgb_video around(const clip& c, std::size_t border, index_t count) {
    media::rgb_video out{2 * count, c.video.height, c.video.width, {}};
    const index_t first = c.borders[border] - count;
    for (index_t k = 0; k < out.frames; ++k) {
        const auto frame = c.video.frame(first + k);
        out.data.insert(out.data.end(), frame.begin(), frame.end());
    }
    const auto mark = [&](index_t frame, index_t column) {
        for (index_t row = 0; row < out.height; ++row) {
            const index_t at = ((frame * out.height + row) * out.width + column) * 3;
            std::fill_n(out.data.begin() + at, 3, std::uint8_t{0});
            out.data[static_cast<std::size_t>(at)] = 255;
        }
    };
    for (index_t k = 0; k < 2; ++k) {
        mark(count - 1, out.width - 1 - k);
        mark(count, k);
    }
    return out;
}

void print_table(const json& seeds) {
    std::printf(
        "\n| variant | clips | within | across | ratio | deviation | largest | largest within "
        "|\n|---|---|---|---|---|---|---|---|\n");
    for (const variant& v : variants({})) {
        const auto all = [&](const char* key) {
            std::vector<double> out;
            for (const auto& [seed, row] : seeds.items()) {
                if (row.contains(v.name())) out.push_back(row.at(v.name()).at(key));
            }
            return out;
        };
        if (all("ratio").empty()) continue;
        const auto ratio = bench::statistics::of(all("ratio"));
        std::printf("| %s | %zu | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f |\n", v.name().c_str(),
                    ratio.count, bench::statistics::of(all("levels_within")).mean,
                    bench::statistics::of(all("levels_across")).mean, ratio.mean, ratio.deviation,
                    bench::statistics::of(all("largest_ratio")).most,
                    bench::statistics::of(all("largest_ratio_within")).most);
    }
}

}  // namespace

int main(int argc, char** argv) try {
    generate::options options;
    options.quiet = true;
    index_t block_latents = 8;
    index_t blocks = 6;
    int first = 0;
    int seeds = bench::prompts;
    int threads = static_cast<int>(std::thread::hardware_concurrency());
    std::size_t border = 1;
    std::string results = "dual_paral_seams.json";
    std::string sheet;
    std::vector<std::string> notes;
    std::vector<std::string> only;
    CLI::App app("Change of pixels across the borders of DualParal's blocks, against within them");
    app.add_option("--seeds", seeds, "Seed s samples prompt s mod 8")->capture_default_str();
    app.add_option("--first", first, "The first seed; earlier ones are taken from --results")
        ->capture_default_str();
    app.add_option("--steps", options.steps)->capture_default_str();
    app.add_option("--size", options.height, "Height and width in pixels")->capture_default_str();
    app.add_option("--block-latents", block_latents)->capture_default_str();
    app.add_option("--blocks", blocks, "Blocks of each video, 2 or more")->capture_default_str();
    app.add_option("--weights", options.weights);
    app.add_option("--threads", threads)->capture_default_str();
    app.add_option("--only", only, "Variants to sample, such as \"C=8 coordinated\"; default all");
    app.add_option("--results", results,
                   "JSON, rewritten after every sample; what it holds is not run again")
        ->capture_default_str();
    app.add_option("--sheet", sheet, "PNG of the first seed: frames around one border");
    app.add_option("--border", border, "Which border the sheet shows, from 0")
        ->capture_default_str();
    app.add_option("--note", notes, "KEY=TEXT to keep in the JSON, such as commit=...");
    CLI11_PARSE(app, argc, argv);
    options.width = options.height;
    options.frames = block_latents;
    detail::require(blocks >= 2 && static_cast<index_t>(border) + 1 < blocks, "border ", border,
                    " of a video of ", blocks,
                    " blocks was asked for; there is one fewer than blocks, counted from 0");

    json all = {{"benchmark", "dual_paral_seams"}, {"processor", bench::processor()},
                {"compiler", __VERSION__},         {"steps", options.steps},
                {"guidance", options.guidance},    {"pixels", {options.height, options.width}},
                {"block_latents", block_latents},  {"blocks", blocks}};
    bench::add_notes(all, notes);
    all["seeds"] = json::object();
    bench::take_over(all, "seeds", results);

    std::vector<media::rgb_video> rows;
    for (int seed = first; seed < seeds; ++seed) {
        options.seed = static_cast<std::uint64_t>(seed);
        options.prompt = bench::prompt_of(seed);
        const bool draws = seed == first && !sheet.empty();
        const generate::job j = generate::prepare(options);
        for (const variant& v : variants(only)) {
            const bool shown = draws && v.coordinated;
            if (all["seeds"][std::to_string(seed)].contains(v.name()) && !shown) continue;
            const clip c = sample(j, v, block_latents, blocks, threads);
            json& row = all["seeds"][std::to_string(seed)][v.name()];
            row = measure(c);
            bench::write(all, results);
            std::cout << "seed " << seed << "  " << v.name() << "  " << row.dump() << std::endl;
            if (shown) rows.push_back(around(c, border, 4));
        }
        if (draws) media::write_contact_sheet(sheet, rows, 8);
    }
    print_table(all["seeds"]);
    return 0;
} catch (const std::exception& error) {
    std::cerr << "dual_paral_seams: " << error.what() << '\n';
    return 1;
}

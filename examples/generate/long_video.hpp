// SPDX-License-Identifier: Apache-2.0
// One rank's share of a long video.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/io/safetensors.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/schedule/coordinated_noise.hpp>

#include <generate/guided_model.hpp>
#include <generate/progress.hpp>
#include <generate/rank.hpp>
#include <generate/run.hpp>
#include <generate/video_outputs.hpp>
#include <wan/sequence_parallel.hpp>

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <utility>

namespace generate {

/// The noise that the blocks of a job begin with.
template <latpar::noise_source Noise>
class noise_of_blocks {
public:
    noise_of_blocks(const job& j, const latpar::loop::dual_paral_plan& plan)
        : plan_(&plan),
          coordinated_(j.options.seed, plan.options.block_latents, plan.options.cat_latents),
          independent_(j.options.seed),
          is_independent_(j.options.video.independent_noise) {}

    void operator()(latpar::index_t block, latpar::latent_view out,
                    latpar::stream_ref stream) const {
        if (!is_independent_) return coordinated_(block, out, stream);
        const latpar::box where{{plan_->first_latent_of(block), 0, 0},
                                latpar::spatial_extents(out)};
        independent_.fill(out, where, {0, 0}, stream);
    }

private:
    const latpar::loop::dual_paral_plan* plan_;
    latpar::basic_coordinated_noise<Noise> coordinated_;
    Noise independent_;
    bool is_independent_;
};

/// Notes what a video that is saved has to have in common with the job that goes on with it, beside
/// what the loop asks for.
void note_job(const job& j, latpar::safetensors_writer& file);
/// Errors: usage_error if the file was saved by another job.
void require_same_job(const job& j, const latpar::safetensors_file& file);

template <class Place, class Loop>
void save_state(Place& here, const Loop& loop, const job& j) {
    latpar::safetensors_writer file;
    note_job(j, file);
    std::deque<latpar::latent> copies;  // which the file refers to until it is written
    loop.save(file, [&](latpar::const_latent_view from) {
        return std::as_const(copies.emplace_back(here.to_host(from))).view();
    });
    file.write(j.options.video.save_state);
}

/// Errors: usage_error if the file was saved by another job; and as the loop's.
template <class Place, class Loop>
void restore_state(Place& here, Loop& loop, const job& j) {
    const auto file = latpar::safetensors_file::open(j.options.video.resume);
    require_same_job(j, file);
    loop.restore(file, [&](std::span<const std::byte> bytes, latpar::latent_view to) {
        here.to_device(bytes, to);
    });
}

/// Runs a loop from iteration `begin` on, until its end or until it is stopped; `sink` gets what it
/// delivers, in host memory.
template <class Place, class Loop, class Sink>
[[nodiscard]] bool run_video(Place& here, Loop& loop, const job& j, const video_plan& plan,
                             latpar::index_t begin, const watch& by, Sink&& sink) {
    using latpar::index_t;
    using noise = typename Place::noise;
    const latpar::loop::dual_paral_plan& pipeline = plan.pipelines.front();
    const bool ends = pipeline.blocks() >= 0;
    progress told(by.label, ends ? pipeline.blocks() - plan.blocks_before(begin) : 0, by.silent,
                  ends ? "block" : "latent");
    index_t done = 0;
    index_t iterations = 0;
    return loop.run(
        noise_of_blocks<noise>(j, pipeline),
        [&](latpar::const_latent_view latents, index_t number) {
            const latpar::latent frames = here.to_host(latents);
            sink(frames.view(), number);
            done += ends ? 1 : latents.extents[2];
            told.update(done);
        },
        [&](index_t) { return ++iterations != j.options.video.stop_after && !by.stop_requested(); },
        noise(j.options.seed), here.stream());
}

/// Puts frames where they belong in a latent whose first is number `first` of the video; all of the
/// host's memory.
void keep_frames(latpar::latent& in, latpar::index_t first, latpar::const_latent_view frames,
                 latpar::index_t number);

/// What one rank knows of the video that all of them make.
struct video_share {
    latpar::any_communicator& world;
    latpar::mesh<communicator>& mesh;
    const job& j;
    const surroundings& around;
    const video_plan& plan;
    report& figures;

    [[nodiscard]] bool is_first() const { return world.rank() == 0; }
    [[nodiscard]] bool is_silent() const { return !is_first() || j.options.quiet; }
};

/// Enters what was asked for, the plan, and how iterations [begin, end) went in the wall time that
/// the report has.
///
/// Ranks: all. Errors: error if that is not what was planned.
void describe_video(const video_share& at, latpar::index_t begin, latpar::index_t end,
                    const latpar::loop::stage_times& times);

/// Compares with the same video of one rank alone, and picks that one's frames for a sheet.
void compare_video(const video_share& at, latpar::const_latent_view result,
                   latpar::const_latent_view serial, media::rgb_video& sheet);

/// The same video on one stage of one rank, as far as the run delivered it: from latent `first` on,
/// in host memory. Nothing if the user stopped it.
template <class Place>
[[nodiscard]] std::optional<latpar::latent> sample_video_alone(
    Place& here, const video_share& at, latpar::index_t first,
    const std::array<latpar::index_t, 5>& extents) {
    const job& j = at.j;
    options wanted = j.options;
    wanted.mesh = "stage=1";
    wanted.ranks = 0;
    const video_plan plan = plan_video(wanted, j.extents, j.schedule, j.weights->config);
    latpar::any_communicator one{latpar::self_communicator()};
    auto place = here.alone(one);
    auto mesh = place.mesh_of(plan.shape);
    const auto weights = place.weights(j.all_weights());
    const auto exec = place.executor();
    auto model = model_of<Place>(j, weights, exec, local_attention_of<Place>(exec));
    latpar::loop::dual_paral loop(
        model, mesh, j.schedule, latpar::guidance_rule::classifier_free(j.options.guidance),
        plan.pipelines.front(), typename Place::kernels{}, place.memory());
    if (!j.options.video.resume.empty()) restore_state(place, loop, j);
    latpar::latent out(extents);
    place.synchronize();
    const auto start = std::chrono::steady_clock::now();
    const bool finished = run_video(place, loop, j, plan, loop.iteration(),
                                    {"one rank", at.is_silent(), at.around.stop_requested},
                                    [&](latpar::const_latent_view frames, latpar::index_t number) {
                                        keep_frames(out, first, frames, number);
                                    });
    if (!finished) return std::nullopt;
    at.figures.serial_wall_seconds = seconds_since(start);
    at.figures.serial_peak_bytes = place.peak_bytes() + weights->storage.bytes();
    return out;
}

/// Samples a long video with DualParal, and writes it while it comes.
///
/// A stop ends it after the iteration that is under way and one more; the outputs then hold what
/// was delivered, and `--save-state` what it takes to go on.
/// Ranks: All of `world`, with one answer.
/// Memory: does not grow with the length, unless it is compared.
template <class Place>
[[nodiscard]] ending make_long_video(Place& here, latpar::any_communicator& world, const job& j,
                                     const surroundings& around, report& figures) {
    using latpar::index_t;
    using kernels = typename Place::kernels;
    const video_plan plan = j.plan_of_video();
    auto mesh = here.mesh_of(plan.shape);
    const video_share at{world, mesh, j, around, plan, figures};
    const auto weights = here.weights(j.weights);
    const auto exec = here.executor();
    // Without axes ulysses and ring its attention is that of one rank.
    using attention = wan::sequence_parallel<communicator, local_attention_of<Place>, kernels>;
    auto model = model_of<Place>(
        j, weights, exec,
        attention(j.weights->config, exec, mesh.axis("ulysses"), mesh.axis("ring")));
    latpar::loop::dual_paral<decltype(model), communicator, latpar::linear_scheduler, kernels> loop(
        model, mesh, j.schedule, latpar::guidance_rule::classifier_free(j.options.guidance),
        plan.of(world.rank()), kernels{}, here.memory());
    const bool resumes = !j.options.video.resume.empty();
    if (resumes && plan.stage_of(world.rank()) == 0) restore_state(here, loop, j);
    const index_t begin = from_all(world, loop.iteration()).front();

    const index_t first = plan.latents_before(begin);
    const index_t total = plan.pipelines.front().options.total_latents;
    std::optional<video_outputs> outputs;
    latpar::latent kept;
    if (at.is_first()) {
        outputs.emplace(j, first, total > 0 ? total - first : 0);
        auto extents = j.extents;
        extents[2] = total - first;
        if (j.options.compare_serial) kept = latpar::latent(extents);
    }
    here.synchronize();
    static_cast<void>(world.control_all_gather({}));  // start the clock together
    const auto start = std::chrono::steady_clock::now();
    const bool finished =
        run_video(here, loop, j, plan, begin, {"long video", at.is_silent(), around.stop_requested},
                  [&](latpar::const_latent_view frames, index_t number) {
                      outputs->add(frames);
                      if (j.options.compare_serial) keep_frames(kept, first, frames, number);
                  });
    here.synchronize();
    static_cast<void>(world.control_all_gather({}));
    figures.wall_seconds = seconds_since(start);
    describe_video(at, begin, loop.iteration(), loop.times());
    here.describe(figures);
    if (!here.waits_for_messages()) {
        figures.video->idle_measured.clear();
        figures.video->mean_idle_measured.reset();
    }
    figures.peak_bytes = from_all(world, here.peak_bytes() + weights->storage.bytes());

    // A stop that was asked for is no interruption.
    const index_t asked = j.options.video.stop_after;
    bool complete = finished || total == 0 || (asked > 0 && figures.video->iterations >= asked);
    if (at.is_first()) {
        // First, so that an output that fails does not cost it.
        const bool saves = !finished && !j.options.video.save_state.empty();
        if (saves) save_state(here, loop, j);
        media::rgb_video sheet;
        if (finished && j.options.compare_serial) {
            const auto serial = sample_video_alone(here, at, first, kept.view().extents);
            complete = serial.has_value();
            if (serial) compare_video(at, std::as_const(kept).view(), serial->view(), sheet);
        }
        figures.written = outputs->close(sheet);
        if (saves) figures.written.push_back(j.options.video.save_state.string());
    }
    // The others wait here, so that no rank ends while rank 0 still works.
    return latpar::any_rank(world, !complete) ? ending::stopped : ending::complete;
}

}  // namespace generate

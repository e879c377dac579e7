// SPDX-License-Identifier: Apache-2.0
// One rank's share of a long video.
#include <latpar/comm/agreement.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/io/safetensors.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/schedule/coordinated_noise.hpp>

#include <generate/long_video.hpp>
#include <generate/progress.hpp>
#include <generate/rank.hpp>
#include <generate/video_outputs.hpp>
#include <wan/sequence_parallel.hpp>
#include <wan/transformer.hpp>

#include <chrono>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

namespace generate {
namespace {

using latpar::const_latent_view;
using latpar::index_t;
using latpar::memory_source;
using latpar::memory_space;
using latpar::detail::require;
using latpar::loop::dual_paral_plan;

/// The noise that the blocks of a job begin with.
class noise_of_blocks {
public:
    noise_of_blocks(const job& j, const dual_paral_plan& plan)
        : plan_(&plan),
          coordinated_(j.options.seed, plan.options.block_latents, plan.options.cat_latents),
          independent_(j.options.seed),
          is_independent_(j.options.video.independent_noise) {}

    void operator()(index_t block, latpar::latent_view out, latpar::stream_ref stream) const {
        if (!is_independent_) return coordinated_(block, out, stream);
        const latpar::box where{{plan_->first_latent_of(block), 0, 0},
                                latpar::spatial_extents(out)};
        independent_.fill(out, where, {0, 0}, stream);
    }

private:
    const dual_paral_plan* plan_;
    latpar::coordinated_noise coordinated_;
    latpar::philox_noise independent_;
    bool is_independent_;
};

template <wan::attention Attention>
wan::transformer<Attention> model_of(const job& j, std::shared_ptr<const wan::weights> weights,
                                     std::shared_ptr<wan::executor> exec, Attention attend) {
    wan::transformer<Attention> out(std::move(weights), std::move(exec), std::move(attend));
    out.set_text(latpar::guidance_branch::conditional, j.conditional);
    out.set_text(latpar::guidance_branch::unconditional, j.unconditional);
    return out;
}

/// What a saved video has to have in common with the job, beside what the loop asks for: the
/// option, and its value.
std::vector<std::pair<std::string, std::string>> identity_of(const job& j) {
    const options& o = j.options;
    return {{"--weights", j.model_name},
            {o.text_embedding.empty() ? "--prompt" : "--text-embedding",
             o.text_embedding.empty() ? o.prompt : o.text_embedding.filename().string()},
            {"--seed", std::to_string(o.seed)},
            {"--noise", o.video.independent_noise ? "independent" : "coordinated"}};
}

template <class Loop>
void save(const Loop& loop, const job& j) {
    latpar::safetensors_writer file;
    for (const auto& [option, value] : identity_of(j)) file.set_metadata(option, value);
    loop.save(file);
    file.write(j.options.video.save_state);
}

/// Errors: usage_error if the file was saved by another job; and as the loop's.
template <class Loop>
void restore(Loop& loop, const job& j) {
    const auto file = latpar::safetensors_file::open(j.options.video.resume);
    for (const auto& [option, value] : identity_of(j)) {
        const auto saved = file.metadata().find(option);
        require(saved != file.metadata().end(), "--resume ", file.path().string(),
                " does not say what its video had as ", option,
                "; give a file that --save-state wrote");
        require(saved->second == value, "--resume ", file.path().string(),
                " was saved by a run with ", option, ' ', saved->second, ", this one has ", value,
                "; give the same");
    }
    loop.restore(file);
}

/// Runs a loop from iteration `begin` on, until its end or until it is stopped; `sink` gets what it
/// delivers.
template <class Loop, class Sink>
bool run_loop(Loop& loop, const job& j, const video_plan& plan, index_t begin, const watch& by,
              Sink&& sink) {
    const dual_paral_plan& pipeline = plan.pipelines.front();
    const bool ends = pipeline.blocks() >= 0;
    progress told(by.label, ends ? pipeline.blocks() - plan.blocks_before(begin) : 0, by.silent,
                  ends ? "block" : "latent");
    index_t done = 0;
    index_t iterations = 0;
    return loop.run(
        noise_of_blocks(j, pipeline),
        [&](const_latent_view frames, index_t number) {
            sink(frames, number);
            done += ends ? 1 : frames.extents[2];
            told.update(done);
        },
        [&](index_t) { return ++iterations != j.options.video.stop_after && !by.stop_requested(); },
        latpar::philox_noise(j.options.seed));
}

/// Puts frames where they belong in a latent whose first is number `first` of the video.
void keep(latpar::latent& in, index_t first, const_latent_view frames, index_t number) {
    latpar::kernel::host{}.copy(
        frames,
        latpar::subview(in.view(), {{number - first, 0, 0}, latpar::spatial_extents(frames)}));
}

/// The same video on one stage of one rank, as far as the run delivered it; std::nullopt if the
/// user stopped it.
std::optional<latpar::latent> sample_alone(const job& j, std::shared_ptr<const wan::weights> all,
                                           const watch& by, index_t first,
                                           const std::array<index_t, 5>& extents,
                                           memory_source memory) {
    options wanted = j.options;
    wanted.mesh = "stage=1";
    wanted.ranks = 0;
    const video_plan plan = plan_video(wanted, j.extents, j.schedule, j.weights->config);
    auto exec =
        std::make_shared<wan::executor>(wan::executor_options{threads_for(1), "auto", memory});
    auto model = model_of(j, std::move(all), exec, wan::local_attention(exec));
    latpar::self_communicator alone;
    latpar::loop::dual_paral loop(model, alone, j.schedule,
                                  latpar::guidance_rule::classifier_free(j.options.guidance),
                                  plan.pipelines.front(), latpar::kernel::host{}, memory);
    if (!j.options.video.resume.empty()) restore(loop, j);
    latpar::latent out(extents, latpar::dtype::f32, memory);
    const bool finished = run_loop(
        loop, j, plan, loop.iteration(), by,
        [&](const_latent_view frames, index_t number) { keep(out, first, frames, number); });
    if (!finished) return std::nullopt;
    return out;
}

/// One rank's share, on its way.
struct share {
    latpar::any_communicator& world;
    latpar::mesh<communicator>& mesh;
    const job& j;
    const surroundings& around;
    const video_plan& plan;
    int threads;
    latpar::counting_resource& memory;
    report& figures;

    [[nodiscard]] bool is_first() const { return world.rank() == 0; }
    [[nodiscard]] bool is_silent() const { return !is_first() || j.options.quiet; }
};

/// Ranks: All. Iterations [begin, end) were run.
void count(const share& at, index_t begin, index_t end, const latpar::loop::stage_times& times) {
    const job& j = at.j;
    report& figures = at.figures;
    const video_plan& plan = at.plan;
    const dual_paral_plan& pipeline = plan.pipelines.front();
    const auto mean = [](const std::vector<double>& values) {
        return std::accumulate(values.begin(), values.end(), 0.0) /
               static_cast<double>(values.size());
    };
    video_figures video;
    video.block_latents = pipeline.options.block_latents;
    video.cat_latents = pipeline.options.cat_latents;
    video.total_latents = pipeline.options.total_latents;
    video.first_latent = plan.latents_before(begin);
    video.latents = plan.latents_before(end) - video.first_latent;
    video.blocks = plan.blocks_before(end) - plan.blocks_before(begin);
    video.first_iteration = begin;
    video.iterations = end - begin;
    video.tasks = pipeline.tasks_before(end) - pipeline.tasks_before(begin);
    if (video.latents > 0) {
        video.seconds_per_latent = figures.wall_seconds / static_cast<double>(video.latents);
    }
    const auto estimate = plan.estimate();
    video.idle_planned = estimate.idle_share;
    video.mean_idle_planned = mean(video.idle_planned);
    video.idle_measured = from_all(at.world, times.idle_share());
    video.mean_idle_measured = mean(video.idle_measured);

    figures.policy = plan.policy();
    figures.mesh = latpar::to_string(plan.shape);
    figures.ranks = at.world.size();
    figures.backend = at.around.backend;
    figures.model = j.model_name;
    figures.latent = {j.extents[1], video.latents, j.extents[3], j.extents[4]};
    figures.steps = j.schedule.steps();
    figures.seed = j.options.seed;
    figures.scheduler = j.schedule.name();
    figures.threads = at.threads;
    figures.video = video;
    std::vector<axis_bytes> planned;
    for (const std::string_view axis : video_plan::axes) {
        planned.push_back({std::string(axis), plan.bytes(axis, end) - plan.bytes(axis, begin), 0});
    }
    count_bytes(at.world, at.mesh, planned, figures);
    figures.workspace_bytes = from_all(at.world, plan.workspace_bytes(at.world.rank()));
    figures.peak_bytes = from_all(at.world, at.memory.peak_bytes() + j.weights->storage.bytes());
}

/// Compares with one rank alone; false if the user stopped it.
bool compare_alone(const share& at, const latpar::latent& result, index_t first,
                   media::rgb_video& sheet) {
    const job& j = at.j;
    latpar::counting_resource memory;
    const auto weights = j.all_weights();
    const auto start = std::chrono::steady_clock::now();
    const auto serial =
        sample_alone(j, weights, {"one rank", at.is_silent(), at.around.stop_requested}, first,
                     result.view().extents, {&memory, memory_space::host});
    if (!serial) return false;
    at.figures.serial_wall_seconds = seconds_since(start);
    at.figures.serial_peak_bytes = memory.peak_bytes() + weights->storage.bytes();
    const likeness alike = compare(j, result.view(), serial->view());
    at.figures.psnr_db = alike.psnr_db;
    at.figures.relative_error = alike.relative_error;
    if (j.decoder) {
        media::frame_picker picker(result.view().extents[2], frames_of_sheet);
        picker.add(j.decoder->decode(serial->view()));
        sheet = picker.picked();
    }
    return true;
}

ending sample(const share& at, std::shared_ptr<wan::executor> exec) {
    const job& j = at.j;
    const video_plan& plan = at.plan;
    // Without axes ulysses and ring its attention is that of one rank.
    using attention = wan::sequence_parallel<communicator>;
    attention attend(j.weights->config, exec, at.mesh.axis("ulysses"), at.mesh.axis("ring"));
    auto model = model_of(j, j.weights, std::move(exec), std::move(attend));
    latpar::loop::dual_paral<wan::transformer<attention>, communicator, latpar::linear_scheduler>
        loop(model, at.mesh, j.schedule, latpar::guidance_rule::classifier_free(j.options.guidance),
             plan.of(at.world.rank()), latpar::kernel::host{}, {&at.memory, memory_space::host});
    const bool resumes = !j.options.video.resume.empty();
    if (resumes && plan.stage_of(at.world.rank()) == 0) restore(loop, j);
    const index_t begin = from_all(at.world, loop.iteration()).front();

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
    static_cast<void>(at.world.control_all_gather({}));  // start the clock together
    const auto start = std::chrono::steady_clock::now();
    const bool finished =
        run_loop(loop, j, plan, begin, {"long video", at.is_silent(), at.around.stop_requested},
                 [&](const_latent_view frames, index_t number) {
                     outputs->add(frames);
                     if (j.options.compare_serial) keep(kept, first, frames, number);
                 });
    static_cast<void>(at.world.control_all_gather({}));
    at.figures.wall_seconds = seconds_since(start);
    count(at, begin, loop.iteration(), loop.times());

    // A stop that was asked for is no interruption.
    const index_t asked = j.options.video.stop_after;
    bool complete = finished || total == 0 || (asked > 0 && at.figures.video->iterations >= asked);
    if (at.is_first()) {
        // First, so that an output that fails does not cost it.
        const bool saves = !finished && !j.options.video.save_state.empty();
        if (saves) save(loop, j);
        media::rgb_video sheet;
        if (finished && j.options.compare_serial) complete = compare_alone(at, kept, first, sheet);
        at.figures.written = outputs->close(sheet);
        if (saves) at.figures.written.push_back(j.options.video.save_state.string());
    }
    // The others wait here, so that no rank ends while rank 0 still works.
    return latpar::any_rank(at.world, !complete) ? ending::stopped : ending::complete;
}

}  // namespace

ending make_long_video(latpar::any_communicator& world, const job& j, const surroundings& around,
                       report& figures) {
    const video_plan plan = j.plan_of_video();
    const int threads =
        j.options.threads > 0 ? j.options.threads : threads_for(around.ranks_on_host);
    latpar::counting_resource memory;
    latpar::mesh<communicator> mesh(latpar::mesh<latpar::any_communicator>(world, plan.shape));
    auto exec = std::make_shared<wan::executor>(
        wan::executor_options{threads, "auto", {&memory, memory_space::host}});
    return sample({world, mesh, j, around, plan, threads, memory, figures}, exec);
}

}  // namespace generate

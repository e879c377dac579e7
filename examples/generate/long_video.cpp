// SPDX-License-Identifier: Apache-2.0
// One rank's share of a long video.
#include <generate/long_video.hpp>

#include <numeric>

namespace generate {
namespace {

using latpar::const_latent_view;
using latpar::index_t;
using latpar::detail::require;

}  // namespace

void note_job(const job& j, latpar::safetensors_writer& file) {
    for (const auto& [option, value] : j.identity()) file.set_metadata(option, value);
}

void require_same_job(const job& j, const latpar::safetensors_file& file) {
    for (const auto& [option, value] : j.identity()) {
        const auto saved = file.metadata().find(option);
        require(saved != file.metadata().end(), "--resume ", file.path().string(),
                " does not say what its video had as ", option,
                "; give a file that --save-state wrote");
        require(saved->second == value, "--resume ", file.path().string(),
                " was saved by a run with ", option, ' ', saved->second, ", this one has ", value,
                "; give the same");
    }
}

void keep_frames(latpar::latent& in, index_t first, const_latent_view frames, index_t number) {
    latpar::kernel::host{}.copy(
        frames,
        latpar::subview(in.view(), {{number - first, 0, 0}, latpar::spatial_extents(frames)}));
}

void describe_video(const video_share& at, index_t begin, index_t end,
                    const latpar::loop::stage_times& times) {
    const job& j = at.j;
    report& figures = at.figures;
    const video_plan& plan = at.plan;
    const latpar::loop::dual_paral_plan& pipeline = plan.pipelines.front();
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

    describe_job(j, figures);
    figures.policy = plan.policy();
    figures.mesh = latpar::to_string(plan.shape);
    figures.ranks = at.world.size();
    figures.latent = {j.extents[1], video.latents, j.extents[3], j.extents[4]};
    figures.video = video;
    std::vector<axis_bytes> planned;
    for (const std::string_view axis : video_plan::axes) {
        planned.push_back({std::string(axis), plan.bytes(axis, end) - plan.bytes(axis, begin), 0});
    }
    count_bytes(at.world, at.mesh, planned, figures);
    figures.workspace_bytes = from_all(at.world, plan.workspace_bytes(at.world.rank()));
}

void compare_video(const video_share& at, const_latent_view result, const_latent_view serial,
                   media::rgb_video& sheet) {
    const job& j = at.j;
    const likeness alike = compare(j, result, serial);
    at.figures.psnr_db = alike.psnr_db;
    at.figures.relative_error = alike.relative_error;
    if (j.decoder) {
        media::frame_picker picker(result.extents[2], frames_of_sheet);
        picker.add(j.decoder->decode(serial));
        sheet = picker.picked();
    }
}

}  // namespace generate

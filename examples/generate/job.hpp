// SPDX-License-Identifier: Apache-2.0
// What all ranks work on: the model, its text, the shapes and the schedule.
#pragma once

#include <latpar/schedule/linear_scheduler.hpp>

#include <generate/media.hpp>
#include <generate/options.hpp>
#include <generate/plan.hpp>
#include <generate/video_plan.hpp>
#include <moving_shapes/decoder.hpp>
#include <wan/transformer.hpp>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace generate {

/// Everything that does not depend on the rank. Immutable while ranks run.
struct job {
    generate::options options;
    std::array<latpar::index_t, 5> extents{};  ///< [1, C, T, H, W]; T 0: a video without an end
    latpar::linear_scheduler schedule;
    std::string model_name;
    std::shared_ptr<const wan::weights> weights;
    std::vector<float> conditional;
    std::vector<float> unconditional;
    std::optional<moving_shapes::decoder> decoder;  ///< if the weights bring one

    [[nodiscard]] run_plan plan() const;
    /// Of a long video.
    [[nodiscard]] video_plan plan_of_video() const;
    /// What makes the video, beside the plan: options, and their values. The same on every process,
    /// and of a video that is saved and of the run that goes on with it.
    [[nodiscard]] std::vector<std::pair<std::string, std::string>> identity() const;
    /// All layers: the job's own weights if they are that, else read anew.
    [[nodiscard]] std::shared_ptr<const wan::weights> all_weights() const;
};

/// Loads weights and text, and checks that what was asked for can be done.
///
/// A process with a copy of its own passes its `rank`: of a long video's model it then loads the
/// layers of its stage alone.
/// Errors: usage_error or io_error, before anything runs.
[[nodiscard]] job prepare(const options& wanted, std::optional<int> rank = {});

/// The plan for `--plan`: needs no text, and of the weights the configuration alone, be it a .json;
/// not even that if the latent and the patch are given.
[[nodiscard]] run_plan plan_only(const options& wanted);

/// The same for a long video, which always needs the configuration.
[[nodiscard]] video_plan plan_video_only(const options& wanted);

/// Where the bundled weights are: beside an installed program, or in the source tree.
[[nodiscard]] std::filesystem::path bundled_weights();

/// How near a result is to what one rank alone makes.
struct likeness {
    /// 10 log10(peak^2 / mean squared difference), at most 100: of the pixels, or of the latent
    /// with its range as the peak where nothing here decodes it.
    double psnr_db = 0;
    double relative_error = 0;  ///< of the latent, relative L2
};
[[nodiscard]] likeness compare(const job& j, latpar::const_latent_view result,
                               latpar::const_latent_view serial);

/// Writes all outputs. `serial`, unless null, is the first row of a contact sheet.
void write_outputs(const job& j, latpar::const_latent_view result,
                   const latpar::const_latent_view* serial);

}  // namespace generate

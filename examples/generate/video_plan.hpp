// SPDX-License-Identifier: Apache-2.0
// What a long video is going to do and cost: DualParal on a mesh, planned.
#pragma once

#include <latpar/comm/mesh_shape.hpp>
#include <latpar/layer/forward_plan.hpp>
#include <latpar/loop/dual_paral_plan.hpp>
#include <latpar/schedule/linear_scheduler.hpp>

#include <generate/options.hpp>
#include <wan/config.hpp>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace generate {

/// Whether the mesh names the axis stage, so that the clip is sampled with DualParal.
[[nodiscard]] bool is_long_video(const options& wanted);

/// Latents that are delivered: those of the clip, or of a long video; 0: no end.
[[nodiscard]] latpar::index_t delivered_latents(const options& wanted);

/// The plan of a long video on all ranks. Immutable.
///
/// Each place of the axes beside `stage` has a pipeline, all of them for one video.
struct video_plan {
    static constexpr std::array<std::string_view, 4> axes{"stage", "guidance", "ring", "ulysses"};

    latpar::mesh_shape shape;
    /// One for each place along ring and ulysses, which share the tokens.
    std::vector<latpar::loop::dual_paral_plan> pipelines;
    /// Where they do: what travels in the layers for one sample, alone and with lent keys.
    std::optional<std::array<latpar::layer::forward_plan, 2>> calls;
    /// Of the layers of each stage, and of all.
    std::vector<latpar::index_t> weight_bytes;
    latpar::index_t all_weight_bytes = 0;
    std::string model{};  ///< for people

    /// The pipeline that a rank belongs to, and its place there.
    [[nodiscard]] const latpar::loop::dual_paral_plan& of(int rank) const;
    [[nodiscard]] int stage_of(int rank) const { return shape.coordinate(rank, "stage"); }

    /// "dual_paral", or with the policies beside it, "dual_paral(guidance_parallel(ulysses))".
    [[nodiscard]] std::string policy() const;
    /// Blocks that are done, and latents that are delivered, once so many iterations are.
    [[nodiscard]] latpar::index_t blocks_before(latpar::index_t iteration) const;
    [[nodiscard]] latpar::index_t latents_before(latpar::index_t iteration) const;
    /// Payload bytes in iterations [0, count), by a rank or by all.
    [[nodiscard]] latpar::index_t bytes_sent_by(int rank, std::string_view axis,
                                                latpar::index_t iterations) const;
    [[nodiscard]] latpar::index_t bytes(std::string_view axis, latpar::index_t iterations) const;
    /// Of the loop and of the attention on several ranks; the model's own memory comes on top.
    [[nodiscard]] latpar::index_t workspace_bytes(int rank) const;
    /// Idle shares of all ranks if messages are free, for the whole video; without an end, for as
    /// many blocks as it takes that the ends count little.
    [[nodiscard]] latpar::loop::pipeline_estimate estimate() const;
};

/// Plans the video for a latent of extents [1, C, any, H, W].
///
/// Errors: usage_error, naming value and remedy, for what the policies refuse.
[[nodiscard]] video_plan plan_video(const options& wanted,
                                    const std::array<latpar::index_t, 5>& extents,
                                    const latpar::linear_scheduler& schedule,
                                    const wan::config& model);

[[nodiscard]] std::string to_table(const video_plan& plan);
/// Indented JSON; bytes are null for a video without an end.
[[nodiscard]] std::string to_json(const video_plan& plan);

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// DualParal, planned: blocks of frames through stages of layers, in one fixed order.
#pragma once

#include <latpar/denoise/staged_denoiser.hpp>
#include <latpar/schedule/latent_problem.hpp>

#include <string>
#include <vector>

namespace latpar::inline v0::loop {

/// How DualParal is to run.
struct dual_paral_options {
    /// B: latent frames of a block.
    index_t block_latents = 8;
    /// C: latent frames that a block sees of its neighbours on either side; 0 to B.
    index_t cat_latents = 8;
    /// Latent frames that are delivered; 0: no end.
    index_t total_latents = 0;
    /// What each stage's layers are to cost, for unequal devices: one for each rank. Empty: alike.
    std::vector<double> stage_weights{};
    /// What predictions travel as.
    dtype wire_prediction = dtype::f32;
};

/// The staged model as the plan sees it.
struct dual_paral_model {
    index_t layers = 1;
    index_t branches = 2;    ///< of guidance, in one pass of one pipeline
    int guidance_ranks = 1;  ///< pipelines side by side that have such branches, each its own
    /// The hidden tensors between layers, for `branches` samples of a window of B + C frames.
    std::vector<hidden_signature> hidden{};
    /// What the feature cache takes for one layer of `branches` branches, with C frames kept.
    index_t cache_bytes_per_layer = 0;

    friend bool operator==(const dual_paral_model&, const dual_paral_model&) = default;
};

/// One denoising step of one block. Every stage does the tasks in the order of the plan.
struct dual_paral_task {
    index_t iteration = 0;
    index_t block = 0;
    index_t step = 0;         ///< of the block's own schedule
    bool is_tail = false;     ///< the first of its iteration, which empties the feature cache
    bool has_front = false;   ///< whether C frames of the next-cleaner block stand in front
    index_t own_latents = 0;  ///< B, or B + C in the first block

    friend bool operator==(const dual_paral_task&, const dual_paral_task&) = default;
};

/// Layers [first, last) of a stage.
struct layer_range {
    index_t first = 0;
    index_t last = 0;
    friend bool operator==(const layer_range&, const layer_range&) = default;
};

/// How busy the stages are if messages are free.
struct pipeline_estimate {
    double makespan = 0;               ///< in times of one task through all layers
    std::vector<double> idle_share{};  ///< of each stage
    double mean_idle_share = 0;
};

/// A video, planned. Immutable; two equal plans send the same bytes in the same order.
struct dual_paral_plan {
    /// Frames of the longest video, so that nothing of it is too large to be counted.
    static constexpr index_t most_latents = index_t{1} << 40;

    latent_problem problem;  ///< extents (T, H, W): T is that of a window
    dual_paral_options options;
    dual_paral_model model;
    int ranks = 1;
    std::vector<layer_range> stages;

    [[nodiscard]] index_t window_latents() const noexcept {
        return options.block_latents + options.cat_latents;
    }
    [[nodiscard]] index_t steps() const noexcept { return problem.steps; }
    /// Blocks of noise; -1 without an end.
    [[nodiscard]] index_t blocks() const noexcept;
    /// Blocks that rank 0 holds at most: one for each step, and one that is done but still seen.
    [[nodiscard]] index_t blocks_held() const noexcept;
    /// Latent frames of a block, and where its first stands in the video.
    [[nodiscard]] index_t latents_of(index_t block) const noexcept;
    [[nodiscard]] index_t first_latent_of(index_t block) const noexcept;
    /// Where a block's own frames lie in the video.
    [[nodiscard]] box frames_of(index_t block) const noexcept;
    /// The same with the context in front of them, as the model sees a task.
    [[nodiscard]] box window_of(const dual_paral_task& task) const noexcept;
    /// Frames of a block that are delivered: the last may be cut off.
    [[nodiscard]] index_t delivered_of(index_t block) const noexcept;
    /// Iterations that step blocks; one more retires the last. -1 without an end.
    [[nodiscard]] index_t iterations() const noexcept;
    /// The blocks that an iteration steps: [first, last], the last visited first.
    [[nodiscard]] index_t first_block_of(index_t iteration) const noexcept;
    [[nodiscard]] index_t last_block_of(index_t iteration) const noexcept;
    /// The blocks whose latents the iterations from one on may read: [first_kept, next_block).
    [[nodiscard]] index_t first_kept(index_t iteration) const noexcept;
    [[nodiscard]] index_t next_block(index_t iteration) const noexcept;
    /// The tasks of an iteration, in order.
    [[nodiscard]] std::vector<dual_paral_task> tasks_of(index_t iteration) const;
    /// How many tasks come before an iteration.
    [[nodiscard]] index_t tasks_before(index_t iteration) const;
    /// The last task, counted from the first of all, whose result a task needs; -1: none.
    [[nodiscard]] index_t needs(const dual_paral_task& task) const;
    /// Tasks that may be under way at once.
    [[nodiscard]] index_t depth() const noexcept { return 2 * ranks; }

    /// Payload bytes of one task: hidden tensors from stage to stage, and the prediction back.
    [[nodiscard]] index_t hidden_bytes() const;
    /// What they take where they lie, each aligned.
    [[nodiscard]] index_t hidden_memory() const;
    [[nodiscard]] index_t prediction_bytes(const dual_paral_task& task) const;
    /// What the longest prediction takes where it lies.
    [[nodiscard]] index_t arrival_bytes() const;
    /// The memory of a rank in which messages arrive: hidden tensors of two tasks, and on rank 0 the
    /// predictions of `depth()` behind them.
    [[nodiscard]] index_t inbox_bytes(int rank) const;
    /// Where in that of rank 0 the prediction of a task arrives, by the task's number.
    [[nodiscard]] index_t arrival_offset(index_t task) const;
    /// Payload bytes that a rank sends along its pipeline in iterations [0, count), a byte for each
    /// that says whether it happens included.
    [[nodiscard]] index_t bytes_sent_by(int rank, index_t iterations_done) const;
    /// Those that it sends to the pipelines with other branches of guidance.
    [[nodiscard]] index_t guidance_bytes_sent_by(int rank, index_t iterations_done) const;
    /// All of them, from all ranks of all pipelines with branches of their own.
    [[nodiscard]] index_t bytes(index_t iterations_done) const;

    /// What the loop takes on a rank: on rank 0 the queue with its histories and the predictions
    /// that are under way, on all the hidden tensors that come and go and the feature cache of the
    /// rank's layers. Without the model.
    [[nodiscard]] index_t workspace_bytes(int rank) const;
    /// Of that the feature cache.
    [[nodiscard]] index_t cache_bytes(int rank) const;

    /// Bytes of one latent frame as it is computed with.
    [[nodiscard]] index_t frame_bytes() const;

    /// Simulates the pipeline for so many blocks (all of them if there is an end): stages take
    /// times in proportion to their layers.
    [[nodiscard]] pipeline_estimate estimate(index_t blocks) const;

    /// What makes the video: equal for plans that differ in their stages only.
    [[nodiscard]] std::string video_fingerprint() const;
    /// One line that is equal exactly if everything above is.
    [[nodiscard]] std::string fingerprint() const;
};

/// Plans DualParal for `ranks` stages. `problem.extents[0]` is taken from the options.
///
/// Errors: usage_error, naming value and remedy, for more stages than layers, C > B, blocks without
/// frames, fewer frames in all than C, weights that are not positive or not one a rank, a batch
/// other than 1, or types that are not computed with.
/// Source: DualParal (arXiv 2505.21070) and its public code, made independent of timing.
[[nodiscard]] dual_paral_plan plan_dual_paral(const latent_problem& problem,
                                              dual_paral_options options,
                                              const dual_paral_model& model, int ranks);

/// The plan as a table for people.
[[nodiscard]] std::string to_table(const dual_paral_plan& plan);

}  // namespace latpar::inline v0::loop

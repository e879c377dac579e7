// SPDX-License-Identifier: Apache-2.0
// LatentParallel, planned: who denoises which box at which step, and what travels.
#pragma once

#include <latpar/comm/transfer_plan.hpp>
#include <latpar/schedule/latent_problem.hpp>
#include <latpar/step/partition.hpp>

#include <string>
#include <vector>

namespace latpar::inline v0 {

/// Where the latent and the stitched prediction live between denoising steps.
enum class latent_layout : std::uint8_t {
    automatic,   ///< the one whose busiest rank sends or receives the fewest bytes
    central,     ///< rank 0 holds the latent, scatters parts and gathers predictions (the paper's)
    replicated,  ///< every rank holds the latent; nests in policies that do not cut it
    sharded,     ///< every rank holds only its part; the loop lets the policy move it between steps
};

[[nodiscard]] std::string_view name_of(latent_layout layout) noexcept;
[[nodiscard]] std::string_view name_of(partition kind) noexcept;

/// What decides a plan of LatentParallel, besides the problem and the number of ranks.
struct latent_parallel_options {
    /// Overlap on each side of a core, in cores: 0 to parts - 1; a single part has none. More is
    /// nearer to one rank and more bytes.
    double overlap = 0.5;
    /// The model's patch in (T, H, W): cuts fall between patches.
    extents3 patch{1, 2, 2};
    partition cores = partition::balanced;
    latent_layout layout = latent_layout::automatic;
    /// What predictions travel as. Nothing travels in a wider type than the latent's.
    dtype wire_prediction = dtype::f32;
    /// What the latent and the scheduler's history travel as. Narrower than the latent, the model
    /// sees them rounded (central) or they are kept rounded (sharded); unused if replicated.
    dtype wire_state = dtype::f32;
    /// Step i is cut along rotation[i mod size], single-patch axes left out.
    std::vector<axis> rotation = std::vector<axis>(all_axes.begin(), all_axes.end());
    /// Number of parts; 0: one for each rank. Only a single rank may simulate more than one.
    int parts = 0;
    /// Whether the finished latent is collected on every rank or on rank 0 alone.
    bool result_everywhere = true;
};

/// A part of the latent in one step.
struct latent_part {
    box core{};    ///< the positions whose prediction this part is chiefly for
    box window{};  ///< the core with its overlap: what the denoiser sees; empty: the rank idles
    /// The stitching weight of each position of the window along the cut; the parts' sum to 1.
    std::vector<float> weights{};
};

/// The latent cut along one axis.
struct latent_cut {
    axis along = axis::t;
    std::vector<latent_part> parts;
};

/// One kind of denoising step: its cut, and what travels before, during and after it. A phase
/// without transfers does not happen.
struct latent_parallel_step {
    std::size_t cut = 0;         ///< index into latent_parallel_plan::cuts
    transfer_phase scatter;      ///< central: parts of z from rank 0
    transfer_phase predictions;  ///< overlaps to the owners of cores, or whole parts to rank 0
    transfer_phase spread;       ///< replicated: stitched cores to every rank
    transfer_phase move_state;   ///< sharded: z from these cores to the next step's windows
    std::vector<transfer_phase> move_history;  ///< sharded: one for each tensor that is still read
};

/// What the policy takes on one rank, in bytes.
struct latent_parallel_workspace {
    index_t part = 0;               ///< central: the part of z that is denoised
    index_t prediction = 0;         ///< its prediction; between steps of sharded the next part of z
    std::vector<index_t> messages;  ///< packed messages: of z and predictions, then of each history
};

/// A whole sampling run, planned. Immutable; two equal plans send the same bytes in the same order.
struct latent_parallel_plan {
    latent_problem problem;
    latent_parallel_options options;  ///< layout and parts resolved
    int ranks = 1;
    std::vector<latent_cut> cuts;
    std::vector<latent_parallel_step> kinds;  ///< the steps that differ
    std::vector<std::size_t> kind_of_step;    ///< index into kinds
    std::vector<transfer_phase> collection;   ///< collect(problem.steps)
    std::vector<index_t> sent_bytes;          ///< by each rank in the whole run
    std::vector<index_t> received_bytes;

    [[nodiscard]] const latent_cut& cut_of(index_t step) const { return cuts[step_at(step).cut]; }
    [[nodiscard]] const latent_parallel_step& step_at(index_t step) const {
        return kinds[kind_of_step[static_cast<std::size_t>(step)]];
    }
    [[nodiscard]] int parts() const noexcept { return options.parts; }
    /// One rank runs all parts in turn.
    [[nodiscard]] bool simulated() const noexcept { return ranks == 1; }
    /// The part of z that a rank holds before a step; with step == steps, at the end.
    [[nodiscard]] box held(index_t step, int rank) const;
    /// The part whose prediction a rank gets, and steps.
    [[nodiscard]] box stepped(index_t step, int rank) const;
    /// The collection of the latent as it lies before a step, or at the end: one phase for each
    /// rank that gives, so that message buffers stay small.
    [[nodiscard]] std::vector<transfer_phase> collect(index_t step) const;

    /// Every phase of a step in the order of execution, empty ones left out.
    [[nodiscard]] std::vector<const transfer_phase*> phases_of(index_t step) const;
    /// Payload bytes of the run, collection included; or of one stopped after `count` steps.
    [[nodiscard]] index_t bytes() const { return bytes_after(problem.steps); }
    [[nodiscard]] index_t bytes_after(index_t count) const;
    [[nodiscard]] index_t bytes_sent_by(int rank) const {
        return sent_bytes[static_cast<std::size_t>(rank)];
    }
    [[nodiscard]] index_t bytes_received_by(int rank) const {
        return received_bytes[static_cast<std::size_t>(rank)];
    }
    /// What a rank sends in one call of the policy at a step, in its relayout after that step, and
    /// when the finished latent is collected: the run is these, each once a step.
    [[nodiscard]] index_t call_bytes_sent_by(int rank, index_t step) const;
    [[nodiscard]] index_t relayout_bytes_sent_by(int rank, index_t step) const;
    [[nodiscard]] index_t collection_bytes_sent_by(int rank) const;
    /// Of the rank that sends or receives most: what decides how long communication takes.
    [[nodiscard]] index_t busiest_bytes() const;
    /// The accounting of the paper: for each step (2 x sum of the parts + latent) x 4 bytes.
    [[nodiscard]] index_t paper_bytes() const;

    /// Denoiser calls of all ranks together; the critical path has `problem.steps` of them.
    [[nodiscard]] index_t denoiser_calls() const;
    /// Positions of the largest part over those of the latent, averaged over the steps: the work of
    /// the critical path against one rank alone.
    [[nodiscard]] double critical_fraction() const;
    /// Host or device bytes that the policy takes on a rank, message buffers included.
    [[nodiscard]] index_t workspace_bytes(int rank) const;
    [[nodiscard]] latent_parallel_workspace workspace(int rank) const;

    /// One line that is equal exactly if problem, options and ranks are.
    [[nodiscard]] std::string fingerprint() const;
};

/// Plans LatentParallel for `ranks` ranks.
///
/// Errors: usage_error, naming value and remedy, for extents that the patch does not divide, an
/// overlap out of range, types that are not computed with, nothing to cut, parts that the ranks
/// cannot take, more than 1024 parts, more bytes than can be counted, or, with `sharded`, a
/// scheduler that is not elementwise or a prediction of other channels than the latent.
/// Source: Latent Parallelism (arXiv 2512.07350); `replicated`, `sharded` and `balanced` are
/// latpar's.
[[nodiscard]] latent_parallel_plan plan_latent_parallel(const latent_problem& problem,
                                                        latent_parallel_options options, int ranks);

/// The plan as a table for people: parts along each axis, bytes, critical path, workspace.
[[nodiscard]] std::string to_table(const latent_parallel_plan& plan);

}  // namespace latpar::inline v0

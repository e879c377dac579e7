// SPDX-License-Identifier: Apache-2.0
// BatchStep, planned: which denoising steps share a batch of the model.
#pragma once

#include <latpar/loop/para_step_plan.hpp>

namespace latpar::inline v0::loop {

/// How BatchStep is to run.
struct batch_step_options {
    /// M: steps that are done one by one at first; 1 to all of them.
    index_t warm_up = 5;
    /// p: steps that share a batch.
    int degree = 2;
    /// What the latents of a batch are stepped on with: newest or extrapolated.
    loop::reuse reuse = reuse::newest;
    /// Whether the latent of the last step may be one that was stepped on to, rather than the true
    /// one.
    bool predict_last = false;
    /// What is held here, where the model's ranks share the latent; none: all of it.
    std::optional<box> held{};
};

/// Steps whose model calls are made together.
struct batch_step_round {
    index_t first = 0;
    index_t count = 0;
    friend bool operator==(const batch_step_round&, const batch_step_round&) = default;
};

/// A whole sampling run, planned. Immutable.
struct batch_step_plan {
    latent_problem problem;
    batch_step_options options;            ///< held resolved
    std::vector<batch_step_round> rounds;  ///< after the warm-up

    /// How many of the last predictions are kept to reuse.
    [[nodiscard]] int kept_predictions() const noexcept;
    /// Batches one after the other: M + ceil((T - M) / p), and one more if the last step is not
    /// predicted and would not have led a batch.
    [[nodiscard]] index_t critical_path_calls() const;
    /// Samples that the model works on, each counted as one call.
    [[nodiscard]] index_t denoiser_calls() const noexcept { return problem.steps; }
    /// Bytes that the loop takes: two latents with their history, the batch with its predictions,
    /// and noise where some is drawn.
    [[nodiscard]] index_t workspace_bytes() const;
    /// One line that is equal exactly if problem and options but for what is held are.
    [[nodiscard]] std::string run_fingerprint() const;
};

/// Plans BatchStep.
///
/// Errors: usage_error, naming value and remedy, for a warm-up or a degree out of range, reuse::own
/// (there is but one rank), a prediction of other channels than the latent, or a held box that does
/// not fit the latent.
/// Source: ParaStep (arXiv 2505.14741), section on BatchStep.
[[nodiscard]] batch_step_plan plan_batch_step(const latent_problem& problem,
                                              batch_step_options options);

}  // namespace latpar::inline v0::loop

// SPDX-License-Identifier: Apache-2.0
// Guidance on several ranks, planned: who calls the model for which branch, and what travels.
#pragma once

#include <latpar/core/box.hpp>
#include <latpar/denoise/guidance_rule.hpp>
#include <latpar/schedule/latent_problem.hpp>

#include <string>
#include <vector>

namespace latpar::inline v0 {

/// How guidance is spread on ranks.
struct guidance_parallel_options {
    guidance_rule rule = guidance_rule::classifier_free(1.0);
    /// What the branches' predictions travel as; nothing travels in a wider type than the latent's.
    dtype wire_prediction = dtype::f32;
    /// Ranks whose rounding is done; 0: as many as there are. Only a single rank may simulate more.
    int degree = 0;
    /// Whether the finished latent is collected by every rank's model or by that of rank 0 alone.
    bool result_everywhere = true;
    /// What is predicted here at each step, where a policy inside or around this one cuts the
    /// latent: one box for each step, or one for all. Empty: the whole latent.
    std::vector<box> predicted{};
};

/// One denoising step: the branches that count, and who calls the model for which.
struct guidance_parallel_step {
    /// calls[rank]: numbers of branches of the rule, in the order of the calls. A single branch
    /// that counts is called by every rank, and nothing travels.
    std::vector<std::vector<int>> calls;
    index_t prediction_bytes = 0;  ///< of one branch, as it travels

    /// What `rank` sends, all of it in one exchange: each of its branches to every other rank.
    [[nodiscard]] index_t bytes_sent_by(int rank) const;
    [[nodiscard]] index_t bytes_received_by(int rank) const;
    [[nodiscard]] index_t bytes() const;
    /// Calls of the busiest rank.
    [[nodiscard]] index_t critical_path_calls() const;
    /// Whether predictions travel.
    [[nodiscard]] bool shares() const;
};

/// Guidance of a whole sampling run, planned. Immutable.
struct guidance_parallel_plan {
    latent_problem problem;
    guidance_parallel_options options;  ///< degree resolved
    int ranks = 1;
    std::vector<guidance_parallel_step> steps;

    [[nodiscard]] const guidance_parallel_step& step_at(index_t step) const {
        return steps[static_cast<std::size_t>(step)];
    }
    /// What is predicted here at a step.
    [[nodiscard]] box predicted_at(index_t step) const;
    /// Whether predictions are rounded to what they travel as.
    [[nodiscard]] bool rounds() const noexcept {
        return options.degree > 1 && options.wire_prediction != problem.type;
    }
    /// Payload bytes of the run, each step done once; what a model inside sends is its own plan's.
    [[nodiscard]] index_t bytes() const;
    [[nodiscard]] index_t bytes_sent_by(int rank) const;
    [[nodiscard]] index_t bytes_received_by(int rank) const;
    /// Calls of the model in the run, by the rank that makes the most in each step; one rank alone
    /// makes all of them in turn.
    [[nodiscard]] index_t critical_path_calls() const;
    /// Calls of the model by a rank alone with the same rule: the sum over steps of branches.
    [[nodiscard]] index_t serial_calls() const;
    /// What the policy takes on a rank: predictions of every branch, as they travel.
    [[nodiscard]] index_t workspace_bytes() const;

    /// One line that is equal exactly if problem, options and ranks are.
    [[nodiscard]] std::string fingerprint() const;
};

/// Plans guidance for `ranks` ranks: those of a step get its branches in order, as evenly as can
/// be.
///
/// Errors: usage_error for more ranks than branches, weights for another number of steps, types
/// that are not computed with, or boxes that do not fit the latent or the steps.
[[nodiscard]] guidance_parallel_plan plan_guidance_parallel(const latent_problem& problem,
                                                            guidance_parallel_options options,
                                                            int ranks);

/// The plan as a table for people.
[[nodiscard]] std::string to_table(const guidance_parallel_plan& plan);

}  // namespace latpar::inline v0

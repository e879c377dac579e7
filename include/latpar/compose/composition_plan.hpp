// SPDX-License-Identifier: Apache-2.0
// Policies that nest on a mesh, planned together.
#pragma once

#include <latpar/comm/mesh_shape.hpp>
#include <latpar/layer/forward_plan.hpp>
#include <latpar/loop/para_step_plan.hpp>
#include <latpar/step/guidance_parallel_plan.hpp>
#include <latpar/step/latent_parallel_plan.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latpar::inline v0 {

/// The options of each policy of a nest. What follows from the nesting is filled in by the plan:
/// degrees and parts, what is held and predicted where, who gets the result, and the layout of
/// `latent` where it is automatic.
struct composition_options {
    loop::para_step_options step{};
    guidance_parallel_options guidance{};
    latent_parallel_options latent{};
    /// The model, where its attention is spread on axes `ulysses` and `ring` (`layer::usp`): what
    /// its calls send is then planned along.
    std::optional<layer::transformer_shape> transformer{};
    /// Whether every rank, or rank 0 alone, has the latent at the end.
    bool result_everywhere = true;
    /// Plan for one rank that simulates the whole mesh, with the same numbers.
    bool simulate = false;
};

/// A sampling run with para_step(guidance_parallel(latent_parallel(model))), planned: the plans of
/// the policies, and their sums. Immutable.
struct composition_plan {
    latent_problem problem;
    composition_options options;
    mesh_shape shape;
    int ranks = 1;
    latent_parallel_plan latent;
    /// The plan of each place along the latent axis: what is predicted and held depends on it.
    std::vector<guidance_parallel_plan> guidance;
    /// The same; without an axis `step` nothing is planned here, and `loop::serial` runs the steps.
    std::vector<loop::para_step_plan> step;
    /// A call of the model for one sample at each kind of cut, by the place along the latent axis:
    /// forward[cut][place]. Without axes `ulysses` and `ring` nothing is planned here.
    std::vector<std::vector<layer::forward_plan>> forward;

    [[nodiscard]] bool in_rounds() const noexcept { return !step.empty(); }
    [[nodiscard]] const guidance_parallel_plan& guidance_of(int rank) const;
    /// Errors: usage_error if the steps do not run in rounds.
    [[nodiscard]] const loop::para_step_plan& step_of(int rank) const;

    /// Guided predictions one after the other: the steps of the schedule, or fewer with rounds.
    [[nodiscard]] index_t critical_path_calls() const;
    /// Calls of the user's model one after the other, where guidance needs several for a
    /// prediction; and those that one rank alone makes.
    [[nodiscard]] index_t critical_path_evaluations() const;
    [[nodiscard]] index_t serial_evaluations() const;
    /// Calls of the user's model by all ranks together; those that share the tokens of a call make
    /// it together, and it counts once.
    [[nodiscard]] index_t model_calls() const;
    [[nodiscard]] index_t model_calls_by(int rank) const;
    /// How much faster than one rank the run can be, were everything but the model free and the
    /// model's time in proportion to the positions that it is given.
    [[nodiscard]] double speed_up_ceiling() const;

    /// Payload bytes along an axis ("step", "guidance", "latent", "ring" or "ulysses"), or along
    /// all.
    [[nodiscard]] index_t bytes(std::string_view axis) const;
    [[nodiscard]] index_t bytes() const;
    [[nodiscard]] index_t bytes_sent_by(int rank, std::string_view axis) const;
    [[nodiscard]] index_t bytes_sent_by(int rank) const;
    /// What the policies and the loop take on a rank, noise included where some is drawn; not the
    /// model, and not the attention in its layers: that is forward_plan::workspace_bytes.
    [[nodiscard]] index_t workspace_bytes(int rank) const;

    /// One line that is equal exactly if problem, options and mesh are.
    [[nodiscard]] std::string fingerprint() const;
};

/// Plans the nest for the ranks of a mesh.
///
/// Errors: usage_error, naming value and remedy, for an axis that has no policy here, axes
/// `ulysses` or `ring` for a model whose transformer was not described, more ranks along `guidance`
/// than branches, the layout `sharded` together with an axis `step`, and what the policies' own
/// plans refuse.
[[nodiscard]] composition_plan plan_composition(const latent_problem& problem,
                                                const mesh_shape& shape,
                                                composition_options options);

/// The plan as tables for people: one of the nest, then those of its policies.
[[nodiscard]] std::string to_table(const composition_plan& plan);

}  // namespace latpar::inline v0

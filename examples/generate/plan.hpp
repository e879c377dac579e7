// SPDX-License-Identifier: Apache-2.0
// What a run is going to do and cost: its policies, planned.
#pragma once

#include <latpar/compose/composition_plan.hpp>
#include <latpar/loop/batch_step_plan.hpp>

#include <generate/options.hpp>

#include <optional>
#include <string>
#include <string_view>

namespace generate {

/// The plan of a run, with the figures that the report compares with. Immutable.
///
/// A denoiser call is one guided prediction of one part, whoever calls the branches; a model call
/// is one branch of it.
struct run_plan {
    latpar::composition_plan nest;
    /// Where steps share a batch: that, in place of the nest's loop. There is one rank then.
    std::optional<latpar::loop::batch_step_plan> batches;
    /// Calls of the model in a call of what the nest wraps. Where the latent is cut and the axis
    /// guidance has one rank, the branches are combined within the cut: one prediction travels.
    latpar::index_t calls_inside = 1;
    /// What it was planned for, for people; empty for any model with such a patch.
    std::string model{};

    /// As the policies nest: "para_step(latent_parallel)"; "serial" for none.
    [[nodiscard]] std::string policy() const;
    /// Steps in a round or a batch; 1 without.
    [[nodiscard]] int steps_at_once() const;
    [[nodiscard]] latpar::index_t denoiser_calls() const;
    [[nodiscard]] latpar::index_t critical_path_calls() const;
    [[nodiscard]] latpar::index_t model_calls() const;
    [[nodiscard]] latpar::index_t critical_path_model_calls() const;
    [[nodiscard]] latpar::index_t serial_model_calls() const;
    /// Model calls of the first rank along guidance in one denoiser call.
    [[nodiscard]] latpar::index_t calls_in_prediction() const;
    /// The accounting of the paper, where only the policy of one paper runs.
    [[nodiscard]] std::optional<latpar::index_t> paper_bytes() const;
    [[nodiscard]] latpar::index_t workspace_bytes(int rank) const;
    /// Payload bytes, along an axis or along all; by a rank or by all.
    [[nodiscard]] latpar::index_t bytes_sent_by(int rank, std::string_view axis) const;
    [[nodiscard]] latpar::index_t bytes_sent_by(int rank) const;
    [[nodiscard]] latpar::index_t bytes(std::string_view axis) const;
    [[nodiscard]] latpar::index_t bytes() const;
};

/// The policies of a mesh as they nest along its axes other than stage: "para_step(ulysses)"; empty
/// for none.
[[nodiscard]] std::string nested_policies(const latpar::mesh_shape& shape);

/// The mesh that was asked for. Errors: usage_error for axes without a policy, another number of
/// ranks, or a mesh that does not go with batches of steps.
[[nodiscard]] latpar::mesh_shape mesh_of(const options& wanted);

/// Axes ulysses and ring need the model's shape.
///
/// Errors: usage_error, naming value and remedy, for what the policies refuse.
[[nodiscard]] run_plan plan_run(const options& wanted, const latpar::latent_problem& problem,
                                const latpar::extents3& patch,
                                const std::optional<latpar::layer::transformer_shape>& transformer);

/// Bytes for people: "12.34 MiB".
[[nodiscard]] std::string mebibytes(latpar::index_t bytes);

[[nodiscard]] std::string to_table(const run_plan& plan);
/// Indented JSON.
[[nodiscard]] std::string to_json(const run_plan& plan);

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// Euler's method for flow matching.
#pragma once

#include <latpar/schedule/linear_scheduler.hpp>

namespace latpar::inline v0::schedule {

/// What `euler_flow` can be told.
struct euler_flow_options {
    index_t steps = 50;
    /// Over 1: more steps at high noise, as large latents need.
    double shift = 3;
};

/// Euler steps along the flow: z += (sigma' - sigma) v. No history, no noise.
///
/// With S(x) = shift x / (1 + (shift - 1) x): sigma = S(s), s from 1 to S(1/1000) in equal steps,
/// so that the shift acts twice, then 0; the timestep is 1000 sigma.
/// Errors: usage_error unless steps >= 1 and shift > 0.
/// Source: flow matching as in arXiv 2403.03206; schedule and float32 rounding of sigma are those
/// of diffusers' FlowMatchEulerDiscreteScheduler.
[[nodiscard]] linear_scheduler euler_flow(const euler_flow_options& options = {});

}  // namespace latpar::inline v0::schedule

// SPDX-License-Identifier: Apache-2.0
// DPM-Solver++ 2M.
#pragma once

#include <latpar/schedule/beta_schedule.hpp>
#include <latpar/schedule/linear_scheduler.hpp>
#include <latpar/schedule/prediction_type.hpp>

namespace latpar::inline v0::schedule {

/// What `dpmpp2m` can be told.
struct dpmpp2m_options {
    index_t steps = 50;
    /// flow or epsilon.
    prediction_type prediction = prediction_type::flow;
    /// Flow only. Over 1: more steps at high noise, as large latents need.
    double shift = 3;
    /// Epsilon only.
    beta_schedule betas{};
};

/// DPM-Solver++ of second order, multistep, midpoint; first order at the first and last step.
///
/// One history tensor: the previous step's estimate of the data. No noise.
/// - flow: sigma = S(s), s from 1 - 1/1000 towards 0 in equal steps, S as in `euler_flow`, then 0;
///   the timestep is 1000 sigma, rounded down.
/// - epsilon: timesteps from 999 towards 0 in equal steps, rounded half to even;
///   sigma = sqrt((1 - abar) / abar), then 0.
///
/// Errors: usage_error unless steps >= 1 (and <= 999 for epsilon), shift > 0, the betas are valid
/// and without zero terminal SNR, and the prediction is flow or epsilon.
/// Source: arXiv 2211.01095, algorithm 2; schedule and float32 rounding of sigma are those of
/// diffusers' DPMSolverMultistepScheduler.
[[nodiscard]] linear_scheduler dpmpp2m(const dpmpp2m_options& options = {});

}  // namespace latpar::inline v0::schedule

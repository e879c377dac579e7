// SPDX-License-Identifier: Apache-2.0
// UniPC of order 2 for flow matching.
#pragma once

#include <latpar/schedule/linear_scheduler.hpp>

namespace latpar::inline v0::schedule {

/// What `unipc_flow` can be told.
struct unipc_flow_options {
    index_t steps = 50;
    /// Over 1: more steps at high noise, as large latents need.
    double shift = 3;
};

/// UniPC-2 (B2(h) = e^h - 1, data prediction) for flow matching; two history tensors, no noise.
///
/// sigma = S(s), s from 1 towards 1/1000 in equal steps, S as in `euler_flow`, the first one
/// 1 - 1e-6; then 0. The timestep is 1000 sigma, rounded down. First order at the first and last
/// step. The corrector acts from step 1 on.
///
/// History, folded: let m_i = z_i - sigma_i v_i be step i's estimate of the data and x_i the
/// corrected latent. The corrector of step i is linear:
///     x_i = a x_{i-1} + b m_{i-1} + c m_{i-2} + d m_i.
/// All but d m_i is known once step i-1 is done, so step i-1 leaves in tensor 0
///     h_i = a x_{i-1} + b m_{i-1} + c m_{i-2},
/// and in tensor 1, for the predictor and the next fold, m_{i-1}. Step i then takes
///     x_i = h_i + d m_i,    z_{i+1} = p x_i + q m_i + r m_{i-1}
/// and leaves h_{i+1} and m_i: neither the last latent nor m_{i-2} is kept. The last step,
/// z_n = m_{n-1}, reads no history at all.
/// Errors: usage_error unless steps >= 1 and shift > 0.
/// Source: arXiv 2302.04867; schedule, float32 rounding of sigma and the coefficient 1/2 of the
/// second-order predictor and first-order corrector are those of diffusers'
/// UniPCMultistepScheduler.
[[nodiscard]] linear_scheduler unipc_flow(const unipc_flow_options& options = {});

}  // namespace latpar::inline v0::schedule

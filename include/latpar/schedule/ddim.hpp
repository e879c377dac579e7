// SPDX-License-Identifier: Apache-2.0
// DDIM, deterministic or with fresh noise in every step.
#pragma once

#include <latpar/schedule/beta_schedule.hpp>
#include <latpar/schedule/linear_scheduler.hpp>
#include <latpar/schedule/prediction_type.hpp>

namespace latpar::inline v0::schedule {

/// Which of the training timesteps are visited.
enum class timestep_spacing : std::uint8_t {
    leading,   ///< i floor(1000 / steps) + 1: begins below the last
    trailing,  ///< 1000 - i 1000 / steps - 1: begins at the last
};

/// What `ddim` can be told.
struct ddim_options {
    index_t steps = 50;
    /// epsilon or v.
    prediction_type prediction = prediction_type::epsilon;
    beta_schedule betas{};
    timestep_spacing spacing = timestep_spacing::leading;
    /// The last step ends at clean data instead of at the first training timestep.
    bool set_alpha_to_one = false;
    /// 0: deterministic; 1: as much fresh noise as ancestral sampling (DDPM) adds.
    double eta = 0;

    /// The set-up of models that predict the noise.
    [[nodiscard]] static ddim_options epsilon(index_t steps) { return {.steps = steps}; }

    /// The set-up of models that predict v from zero terminal SNR.
    [[nodiscard]] static ddim_options v(index_t steps) {
        return {.steps = steps,
                .prediction = prediction_type::v,
                .betas = {.zero_terminal_snr = true},
                .spacing = timestep_spacing::trailing,
                .set_alpha_to_one = true};
    }
};

/// DDIM: to the data and back to the next noise level; no history.
///
/// With x0 and e the data and noise that the prediction implies, a = abar of this timestep and a'
/// that of t - floor(1000 / steps):
///     z' = sqrt(a') x0 + sqrt(1 - a' - s^2) e + s noise,
///     s = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a').
/// Noise is drawn in the steps where s is not 0. `sigmas()` are sqrt(1 - abar), finite at zero SNR.
/// Errors: usage_error unless 1 <= steps <= 1000 (999 with leading spacing), 0 <= eta <= 1, the
/// betas are valid, the prediction is epsilon or v, and epsilon is not asked of pure noise.
/// Source: arXiv 2010.02502, equations 12 and 16; schedule as in diffusers' DDIMScheduler, without
/// clipping.
[[nodiscard]] linear_scheduler ddim(const ddim_options& options = {});

}  // namespace latpar::inline v0::schedule

// SPDX-License-Identifier: Apache-2.0
// The noise levels that a variance-preserving diffusion model was trained on.
#pragma once

#include <latpar/core/dtype.hpp>

#include <vector>

namespace latpar::inline v0::schedule {

/// The betas of the 1000 training timesteps, equally spaced in their square roots ("scaled
/// linear").
struct beta_schedule {
    static constexpr index_t train_steps = 1000;

    double start = 0.00085;
    double end = 0.012;
    /// Rescaled so that the last training timestep is pure noise; such a model predicts v.
    bool zero_terminal_snr = false;
};

/// The share of the data's variance that is left at each training timestep: the running product
/// of 1 - beta.
///
/// Errors: usage_error unless 0 < start <= end < 1.
/// Source: arXiv 2112.10752 (the betas), arXiv 2305.08891, algorithm 1 (the rescaling).
[[nodiscard]] std::vector<double> alphas_bar(const beta_schedule& betas);

}  // namespace latpar::inline v0::schedule

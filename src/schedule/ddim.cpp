// SPDX-License-Identifier: Apache-2.0
// DDIM.
#include "noise_level.hpp"

#include <latpar/schedule/ddim.hpp>

#include <utility>

namespace latpar::inline v0::schedule {
namespace {

using latpar::detail::require;

index_t timestep(index_t i, index_t n, timestep_spacing spacing) {
    constexpr index_t train = beta_schedule::train_steps;
    if (spacing == timestep_spacing::leading) return (n - 1 - i) * (train / n) + 1;
    const double stride = static_cast<double>(train) / static_cast<double>(n);
    return static_cast<index_t>(std::nearbyint(train - static_cast<double>(i) * stride)) - 1;
}

}  // namespace

linear_scheduler ddim(const ddim_options& options) {
    constexpr index_t train = beta_schedule::train_steps;
    const index_t n = options.steps;
    const bool leading = options.spacing == timestep_spacing::leading;
    const bool predicts_v = options.prediction == prediction_type::v;
    detail::check_steps(leading ? "ddim with leading spacing" : "ddim", n,
                        leading ? train - 1 : train);
    require(predicts_v || options.prediction == prediction_type::epsilon,
            "ddim was given the prediction ", name_of(options.prediction),
            "; it takes epsilon or v");
    require(options.eta >= 0 && options.eta <= 1, "ddim was given eta ", options.eta,
            "; it takes 0 (deterministic) to 1 (ancestral)");
    const std::vector<double> abar = alphas_bar(options.betas);
    const double final_signal = options.set_alpha_to_one ? 1 : abar.front();

    std::vector<double> timesteps;
    std::vector<double> sigmas;
    std::vector<linear_step> steps;
    for (index_t i = 0; i < n; ++i) {
        const index_t t = timestep(i, n, options.spacing);
        const index_t next = t - train / n;
        const double signal = abar[static_cast<std::size_t>(t)];
        const double next_signal = next >= 0 ? abar[static_cast<std::size_t>(next)] : final_signal;
        require(predicts_v || signal > 0, "ddim was asked to take epsilon predictions at timestep ",
                t,
                ", where nothing of the data is left; predict v, or set zero_terminal_snr = false");
        timesteps.push_back(static_cast<double>(t));
        sigmas.push_back(std::sqrt(1 - signal));

        const double alpha = std::sqrt(signal);
        const double sigma = std::sqrt(1 - signal);
        const linear_form z = linear_form::z();
        const linear_form prediction = linear_form::prediction();
        const linear_form data =
            predicts_v ? alpha * z - sigma * prediction : 1 / alpha * (z - sigma * prediction);
        const linear_form noise = predicts_v ? alpha * prediction + sigma * z : prediction;

        const double variance = options.eta * options.eta * (1 - next_signal) / (1 - signal) *
                                (1 - signal / next_signal);
        steps.push_back({std::sqrt(next_signal) * data +
                         std::sqrt(1 - next_signal - variance) * noise +
                         std::sqrt(variance) * linear_form::noise()});
    }
    sigmas.push_back(std::sqrt(1 - final_signal));
    return {predicts_v ? "ddim_v" : "ddim_eps", std::move(timesteps), std::move(sigmas), steps};
}

}  // namespace latpar::inline v0::schedule

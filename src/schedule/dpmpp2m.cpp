// SPDX-License-Identifier: Apache-2.0
// DPM-Solver++ 2M.
#include "noise_level.hpp"

#include <latpar/schedule/dpmpp2m.hpp>

#include <utility>

namespace latpar::inline v0::schedule {
namespace {

using detail::noise_level;

struct grid {
    std::vector<double> timesteps{};
    std::vector<double> sigmas{};
    std::vector<noise_level> levels{};
};

grid flow_grid(index_t n, double shift) {
    detail::check_steps("dpmpp2m_flow", n);
    detail::check_shift("dpmpp2m_flow", shift);
    const double spacing = (0.001 - 1) / static_cast<double>(n);
    grid out;
    for (index_t i = 0; i < n; ++i) {
        const double clean = 1 + static_cast<double>(n - i) * spacing;
        const double exact = detail::shifted(1 - clean, shift);
        out.timesteps.push_back(std::floor(1000 * exact));
        out.sigmas.push_back(detail::to_stored(exact));
        out.levels.push_back(detail::flow_level(out.sigmas.back()));
    }
    return out;
}

grid epsilon_grid(index_t n, const beta_schedule& betas) {
    // More steps than 999 would visit a timestep twice, and the solver divides by the distance.
    detail::check_steps("dpmpp2m_eps", n, beta_schedule::train_steps - 1);
    latpar::detail::require(
        !betas.zero_terminal_snr,
        "dpmpp2m was asked to begin at zero SNR, where its log-SNR is infinite; "
        "set zero_terminal_snr = false or use ddim");
    const std::vector<double> abar = alphas_bar(betas);
    const double spacing =
        static_cast<double>(beta_schedule::train_steps - 1) / static_cast<double>(n);
    grid out;
    for (index_t i = 0; i < n; ++i) {
        const double t = std::nearbyint(static_cast<double>(n - i) * spacing);
        const double signal = abar[static_cast<std::size_t>(t)];
        const double sigma = detail::to_stored(std::sqrt((1 - signal) / signal));
        const double alpha = 1 / std::sqrt(sigma * sigma + 1);
        out.timesteps.push_back(t);
        out.sigmas.push_back(sigma);
        out.levels.push_back({alpha, sigma * alpha});
    }
    return out;
}

}  // namespace

linear_scheduler dpmpp2m(const dpmpp2m_options& options) {
    const bool flow = options.prediction == prediction_type::flow;
    latpar::detail::require(flow || options.prediction == prediction_type::epsilon,
                            "dpmpp2m was given the prediction ", name_of(options.prediction),
                            "; it takes flow or epsilon");
    grid levels =
        flow ? flow_grid(options.steps, options.shift) : epsilon_grid(options.steps, options.betas);
    levels.sigmas.push_back(0);
    levels.levels.push_back({1, 0});

    const std::size_t n = levels.timesteps.size();
    const linear_form previous = linear_form::history(0);
    std::vector<linear_step> steps;
    for (std::size_t i = 0; i < n; ++i) {
        const noise_level& s = levels.levels[i];
        const noise_level& t = levels.levels[i + 1];
        const linear_form data =
            flow ? linear_form::z() - s.sigma * linear_form::prediction()
                 : 1 / s.alpha * (linear_form::z() - s.sigma * linear_form::prediction());
        const double h = t.lambda() - s.lambda();
        const double scale = -t.alpha * std::expm1(-h);
        linear_form next = t.sigma / s.sigma * linear_form::z() + scale * data;
        if (i > 0 && i + 1 < n) {
            const double r = (s.lambda() - levels.levels[i - 1].lambda()) / h;
            next = next + scale * 0.5 / r * (data - previous);
        }
        steps.push_back({next, {data}});
    }
    return {flow ? "dpmpp2m_flow" : "dpmpp2m_eps", std::move(levels.timesteps),
            std::move(levels.sigmas), steps};
}

}  // namespace latpar::inline v0::schedule

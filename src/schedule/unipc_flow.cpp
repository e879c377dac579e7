// SPDX-License-Identifier: Apache-2.0
// UniPC of order 2 for flow matching.
#include "noise_level.hpp"

#include <latpar/schedule/unipc_flow.hpp>

#include <utility>

namespace latpar::inline v0::schedule {
namespace {

using detail::noise_level;

/// The corrector's x_i = a x_{i-1} + b m_{i-1} + c m_{i-2} + d m_i.
struct corrector {
    double a = 0, b = 0, c = 0, d = 0;
};

/// From level `s` (at index i-1) to `t` (at index i); `before` is null for the first order.
corrector corrector_of(const noise_level* before, const noise_level& s, const noise_level& t) {
    const double h = t.lambda() - s.lambda();
    const double phi_1 = std::expm1(-h);
    double old_weight = 0;
    double new_weight = 0.5;
    if (before) {
        // Order 2 solves w_old + w_new = b_1, r w_old + w_new = b_2 for r = (lambda_{i-2} -
        // lambda_{i-1}) / h; the old weight multiplies a difference divided by r.
        const double phi_2 = phi_1 / -h - 1;
        const double phi_3 = phi_2 / -h - 0.5;
        const double b_1 = phi_2 / phi_1;
        const double b_2 = 2 * phi_3 / phi_1;
        const double r = (before->lambda() - s.lambda()) / h;
        const double w_old = (b_2 - b_1) / (r - 1);
        old_weight = w_old / r;
        new_weight = b_1 - w_old;
    }
    const double scale = -t.alpha * phi_1;
    return {t.sigma / s.sigma, scale * (1 - old_weight - new_weight), scale * old_weight,
            scale * new_weight};
}

}  // namespace

linear_scheduler unipc_flow(const unipc_flow_options& options) {
    const auto [n, shift] = options;
    detail::check_steps("unipc_flow", n);
    detail::check_shift("unipc_flow", shift);
    const double spacing = (0.001 - 1) / static_cast<double>(n);

    std::vector<double> timesteps;
    std::vector<double> sigmas;
    std::vector<noise_level> levels;
    for (index_t i = 0; i < n; ++i) {
        const double exact =
            i == 0 ? 1 - 1e-6 : detail::shifted(1 + static_cast<double>(i) * spacing, shift);
        timesteps.push_back(std::floor(1000 * exact));
        sigmas.push_back(detail::to_stored(exact));
        levels.push_back(detail::flow_level(sigmas.back()));
    }
    sigmas.push_back(0);

    const std::size_t last = levels.size() - 1;
    const linear_form carried = linear_form::history(0);
    const linear_form previous = linear_form::history(1);
    std::vector<linear_step> steps;
    corrector current;
    for (std::size_t i = 0; i <= last; ++i) {
        const linear_form data = linear_form::z() - sigmas[i] * linear_form::prediction();
        if (i == last) {
            steps.push_back({data, {{}, {}}});
            break;
        }
        const noise_level& s = levels[i];
        const noise_level& t = levels[i + 1];
        const noise_level* before = i > 0 ? &levels[i - 1] : nullptr;
        const linear_form corrected = i == 0 ? linear_form::z() : carried + current.d * data;

        const double h = t.lambda() - s.lambda();
        const double scale = -t.alpha * std::expm1(-h);
        linear_form next = t.sigma / s.sigma * corrected + scale * data;
        if (before) {
            const double r = (before->lambda() - s.lambda()) / h;
            next = next + scale * 0.5 / r * (previous - data);
        }
        current = corrector_of(before, s, t);
        const linear_form fold = current.a * corrected + current.b * data + current.c * previous;
        steps.push_back({next, {fold, data}});
    }
    return {"unipc_flow", std::move(timesteps), std::move(sigmas), steps};
}

}  // namespace latpar::inline v0::schedule

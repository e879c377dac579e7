// SPDX-License-Identifier: Apache-2.0
// Euler's method for flow matching.
#include "noise_level.hpp"

#include <latpar/schedule/euler_flow.hpp>

#include <utility>

namespace latpar::inline v0::schedule {

linear_scheduler euler_flow(const euler_flow_options& options) {
    const auto [n, shift] = options;
    detail::check_steps("euler_flow", n);
    detail::check_shift("euler_flow", shift);
    const double last = detail::to_stored(detail::shifted(0.001, shift));
    const double spacing = n > 1 ? (last - 1) / static_cast<double>(n - 1) : 0;

    std::vector<double> timesteps;
    std::vector<double> sigmas;
    for (index_t i = 0; i < n; ++i) {
        const double sigma =
            detail::to_stored(detail::shifted(1 + static_cast<double>(i) * spacing, shift));
        sigmas.push_back(sigma);
        timesteps.push_back(detail::to_stored(1000 * sigma));
    }
    sigmas.push_back(0);

    std::vector<linear_step> steps;
    for (std::size_t i = 0; i < timesteps.size(); ++i) {
        steps.push_back(
            {linear_form::z() + (sigmas[i + 1] - sigmas[i]) * linear_form::prediction()});
    }
    return {"euler_flow", std::move(timesteps), std::move(sigmas), steps};
}

}  // namespace latpar::inline v0::schedule

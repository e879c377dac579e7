// SPDX-License-Identifier: Apache-2.0
// The noise levels of a variance-preserving diffusion model.
#include <latpar/schedule/beta_schedule.hpp>

#include <cmath>

namespace latpar::inline v0::schedule {

std::vector<double> alphas_bar(const beta_schedule& betas) {
    latpar::detail::require(betas.start > 0 && betas.start <= betas.end && betas.end < 1,
                            "a beta schedule from ", betas.start, " to ", betas.end,
                            " was asked for; it takes 0 < start <= end < 1");
    const double first = std::sqrt(betas.start);
    const double last = std::sqrt(betas.end);
    std::vector<double> out;
    double product = 1;
    for (index_t t = 0; t < beta_schedule::train_steps; ++t) {
        const double root = first + (last - first) * static_cast<double>(t) /
                                        static_cast<double>(beta_schedule::train_steps - 1);
        product *= 1 - root * root;
        out.push_back(product);
    }
    if (betas.zero_terminal_snr) {
        const double head = std::sqrt(out.front());
        const double tail = std::sqrt(out.back());
        for (double& value : out) {
            const double root = (std::sqrt(value) - tail) * head / (head - tail);
            value = root * root;
        }
    }
    return out;
}

}  // namespace latpar::inline v0::schedule

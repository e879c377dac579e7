// SPDX-License-Identifier: Apache-2.0
// What the schedulers share: checked options, the flow's shift, one noise level.
#pragma once

#include <latpar/schedule/linear_scheduler.hpp>

#include <cmath>
#include <limits>

namespace latpar::inline v0::schedule::detail {

/// z = alpha x0 + sigma noise.
struct noise_level {
    double alpha = 1;
    double sigma = 0;

    /// Half the logarithm of the signal-to-noise ratio; infinite without noise.
    [[nodiscard]] double lambda() const { return std::log(alpha) - std::log(sigma); }
};

inline noise_level flow_level(double sigma) {
    return {1 - sigma, sigma};
}

/// The exponential integrators of both multistep solvers see sigma as it is stored, in float32:
/// near 1, where 1 - sigma is small, the rounding is felt.
inline double to_stored(double sigma) {
    return static_cast<double>(static_cast<float>(sigma));
}

inline void check_steps(std::string_view name, index_t steps,
                        index_t most = std::numeric_limits<std::int32_t>::max()) {
    latpar::detail::require(steps >= 1 && steps <= most, name, " was asked for ", steps,
                            " steps; it takes 1 to ", most);
}

inline void check_shift(std::string_view name, double shift) {
    latpar::detail::require(std::isfinite(shift) && shift > 0, name, " was given the shift ", shift,
                            "; it must be positive and finite, 1 shifts nothing");
}

inline double shifted(double sigma, double shift) {
    return shift * sigma / (1 + (shift - 1) * sigma);
}

}  // namespace latpar::inline v0::schedule::detail

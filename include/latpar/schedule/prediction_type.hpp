// SPDX-License-Identifier: Apache-2.0
// What a model predicts.
#pragma once

#include <cstdint>
#include <string_view>

namespace latpar::inline v0::schedule {

/// What a model predicts of z = alpha x0 + sigma noise.
enum class prediction_type : std::uint8_t {
    epsilon,  ///< the noise
    v,        ///< alpha noise - sigma x0
    flow,     ///< noise - x0, with alpha = 1 - sigma
};

[[nodiscard]] constexpr std::string_view name_of(prediction_type type) noexcept {
    switch (type) {
        case prediction_type::epsilon:
            return "epsilon";
        case prediction_type::v:
            return "v";
        case prediction_type::flow:
            return "flow";
    }
    return "?";
}

}  // namespace latpar::inline v0::schedule

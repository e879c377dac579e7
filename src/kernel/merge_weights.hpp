// SPDX-License-Identifier: Apache-2.0
// How two partial results of attention weigh when they are merged.
#pragma once

#include <cmath>

namespace latpar::inline v0::kernel::detail {

struct merge_weights {
    float first = 0;
    float second = 0;
    float lse = 0;
};

/// From the logs of two sums of exponentials; weights of zero where neither has a key.
inline merge_weights merge(float first, float second) {
    const float most = first > second ? first : second;
    if (std::isinf(most) && most < 0) return {0, 0, most};
    const float a = std::exp(first - most);
    const float b = std::exp(second - most);
    const float sum = a + b;
    return {a / sum, b / sum, most + std::log(sum)};
}

}  // namespace latpar::inline v0::kernel::detail

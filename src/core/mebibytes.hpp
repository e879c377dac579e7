// SPDX-License-Identifier: Apache-2.0
// Bytes as the tables of plans print them.
#pragma once

#include <latpar/core/dtype.hpp>

namespace latpar::inline v0::detail {

[[nodiscard]] constexpr double mebibytes(index_t bytes) noexcept {
    return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

}  // namespace latpar::inline v0::detail

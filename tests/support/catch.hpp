// SPDX-License-Identifier: Apache-2.0
// Catch2, whichever of its two major versions is installed.
#pragma once

#if defined(LATPAR_CATCH2_V3)
#include <catch2/catch_all.hpp>
using Catch::Approx;
using Catch::Matchers::ContainsSubstring;
#else
#include <catch2/catch.hpp>
using Catch::Matchers::Contains;
inline auto ContainsSubstring(const std::string& text) {
    return Contains(text);
}
#endif

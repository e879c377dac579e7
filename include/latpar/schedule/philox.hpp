// SPDX-License-Identifier: Apache-2.0
// Philox 4x32-10: random bits as a function of a counter and a key.
#pragma once

#include <array>
#include <cstdint>

namespace latpar::inline v0::schedule {

/// 128 random bits for a 128-bit counter and a 64-bit key; no state, so any part of a sequence can
/// be drawn anywhere, on any device.
///
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
/// Example: `const auto words = philox4x32({0, 0, 0, 0}, {seed, 0});`
[[nodiscard]] constexpr std::array<std::uint32_t, 4> philox4x32(
    std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = 0xD2511F53ull * counter[0];
        const std::uint64_t product1 = 0xCD9E8D57ull * counter[2];
        counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
                   static_cast<std::uint32_t>(product1),
                   static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
                   static_cast<std::uint32_t>(product0)};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return counter;
}

}  // namespace latpar::inline v0::schedule

// SPDX-License-Identifier: Apache-2.0
// A hash of numbers that is the same in every build, so that files may keep it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace latpar::inline v0::detail {

/// FNV-1a over the bytes of the values, one range after the other, in hexadecimal.
template <class... T>
[[nodiscard]] std::string hash_of(std::span<const T>... values) {
    std::uint64_t hash = 0xcbf29ce484222325;
    const auto add = [&](std::span<const std::byte> bytes) {
        for (const std::byte byte : bytes) {
            hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3;
        }
    };
    (add(std::as_bytes(values)), ...);
    std::string text;
    for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[hash >> shift & 15];
    return text;
}

}  // namespace latpar::inline v0::detail

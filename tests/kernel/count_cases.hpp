// SPDX-License-Identifier: Apache-2.0
// Latents that are no numbers here and there, and how many, counted one by one.
#pragma once

#include <kernel/random_latent.hpp>

#include <cstring>

namespace count_cases {

/// Puts infinities, NaNs quiet and signalling, and the largest numbers anywhere in the memory of a
/// latent, between and around its positions too.
inline void sprinkle(random_latent& values, std::mt19937& generator) {
    constexpr std::array<std::uint32_t, 6> f32{0x7f800000, 0xff800000, 0x7fc00001,
                                               0xff800001, 0x7f7fffff, 0xff7fffff};
    constexpr std::array<std::uint32_t, 6> bf16{0x7f80, 0xff80, 0x7fc1, 0xff81, 0x7f7f, 0xff7f};
    constexpr std::array<std::uint32_t, 6> f16{0x7c00, 0xfc00, 0x7e01, 0xfc01, 0x7bff, 0xfbff};
    const latpar::dtype type = values.view().type;
    const auto& bits = type == latpar::dtype::f32 ? f32 : type == latpar::dtype::bf16 ? bf16 : f16;
    const auto size = static_cast<std::size_t>(latpar::size_of(type));
    const std::span<std::byte> bytes = values.bytes();
    // None, a few, or all of them.
    const std::array<unsigned, 4> every{0, 1, 3, 50};
    const unsigned one_in = every[generator() % every.size()];
    for (std::size_t at = 0; one_in > 0 && at + size <= bytes.size(); at += size) {
        if (generator() % one_in == 0) {
            std::memcpy(&bytes[at], &bits[generator() % bits.size()], size);
        }
    }
}

/// One position after the other, from the bits.
inline std::uint64_t counted(const latpar::const_latent_view& values) {
    const std::uint32_t mask = values.type == latpar::dtype::f32    ? 0x7f800000u
                               : values.type == latpar::dtype::bf16 ? 0x7f80u
                                                                    : 0x7c00u;
    const latpar::index_t size = latpar::size_of(values.type);
    const auto& extents = values.extents;
    std::uint64_t out = 0;
    std::array<latpar::index_t, 5> at{};
    for (at[0] = 0; at[0] < extents[0]; ++at[0])
        for (at[1] = 0; at[1] < extents[1]; ++at[1])
            for (at[2] = 0; at[2] < extents[2]; ++at[2])
                for (at[3] = 0; at[3] < extents[3]; ++at[3])
                    for (at[4] = 0; at[4] < extents[4]; ++at[4]) {
                        std::uint32_t bits = 0;
                        std::memcpy(&bits, values.data + values.offset(at) * size,
                                    static_cast<std::size_t>(size));
                        out += (bits & mask) == mask;
                    }
    return out;
}

/// The view as it is, or with one axis that repeats a position, or that runs backwards.
inline latpar::const_latent_view varied(latpar::const_latent_view values, std::mt19937& generator) {
    const std::size_t d = generator() % 5;
    if (values.elements() == 0) return values;
    if (generator() % 4 == 0) {
        values.strides[d] = 0;
    } else if (generator() % 4 == 0) {
        values.data += (values.extents[d] - 1) * values.strides[d] * latpar::size_of(values.type);
        values.strides[d] = -values.strides[d];
    }
    return values;
}

}  // namespace count_cases

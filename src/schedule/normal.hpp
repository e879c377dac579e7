// SPDX-License-Identifier: Apache-2.0
// Standard normal numbers from random bits, the same to the last bit on host and device.
//
// Only + - * / and the correctly rounded square root in float32, in a fixed order: every IEEE 754
// machine gives the same bits if the compiler does not contract (-ffp-contract=off; -fmad=false
// for nvcc). Plain constexpr functions, for device code too with --expt-relaxed-constexpr.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace latpar::inline v0::schedule::detail {

/// The natural logarithm of a positive normal number.
[[nodiscard]] constexpr float natural_log(float x) {
    // x = 2^e m with m in [sqrt(1/2), sqrt(2)).
    constexpr std::uint32_t root_half = 0x3f3504f3u;
    const std::uint32_t shifted = std::bit_cast<std::uint32_t>(x) - root_half;
    const auto e = static_cast<float>(static_cast<std::int32_t>(shifted) >> 23);
    const float f = std::bit_cast<float>((shifted & 0x007fffffu) + root_half) - 1.0f;

    // ln(1 + f) = 2 atanh(s), s = f / (2 + f); with 2 s = f - f^2/2 + s f^2/2 the leading term f is
    // exact. The polynomial approximates 2 atanh(s) / s - 2 on |s| <= 3 - 2 sqrt(2).
    const float s = f / (2.0f + f);
    const float t = s * s;
    const float rest = t * (0.6666668653f + t * (0.3998878002f + t * 0.2957994938f));
    const float half_square = 0.5f * f * f;

    // ln 2 in two parts, the first short enough that its product with e is exact.
    constexpr float ln2_high = 0.693145751953125f;
    constexpr float ln2_low = 1.428606765e-6f;
    return e * ln2_high + (f - (half_square - (s * (half_square + rest) + e * ln2_low)));
}

struct sine_cosine {
    float sine;
    float cosine;
};

/// Sine and cosine of `turn` / 2^32 full turns.
[[nodiscard]] constexpr sine_cosine sincos_of_turn(std::uint32_t turn) {
    // Quadrant and signed remainder in integers: no error before the last conversion.
    const std::uint32_t quadrant = (turn + 0x20000000u) >> 30;
    const auto remainder = static_cast<std::int32_t>(turn - (quadrant << 30));
    const float x = static_cast<float>(remainder) * 1.46291807926715968e-9f;  // pi / 2^31

    // Polynomials on |x| <= pi/4 for sin(x) / x - 1 and cos(x) - 1 + x^2/2, in x^2.
    const float t = x * x;
    const float sine =
        x + x * (t * (-0.1666666418f + t * (0.008332747966f + t * -0.0001958789071f)));
    const float cosine =
        1.0f - (0.5f * t - t * t * (0.04166666418f + t * (-0.001388830249f + t * 2.45479423e-5f)));

    switch (quadrant & 3u) {
        case 0:
            return {sine, cosine};
        case 1:
            return {cosine, -sine};
        case 2:
            return {-sine, -cosine};
        default:
            return {-cosine, sine};
    }
}

/// Four independent standard normal numbers from four words of random bits, by Box and Muller.
///
/// `root` is the correctly rounded square root: std::sqrt on the host, __fsqrt_rn on a device.
template <class Root>
[[nodiscard]] constexpr std::array<float, 4> normal4(const std::array<std::uint32_t, 4>& words,
                                                     Root root) {
    std::array<float, 4> out{};
    for (std::size_t pair = 0; pair < 2; ++pair) {
        // (0, 1]: 31 bits and a half, so that the logarithm is finite.
        const auto bits = static_cast<std::int32_t>(words[2 * pair] >> 1);
        const float uniform = static_cast<float>(bits) * 4.656612873e-10f + 2.328306437e-10f;
        const float radius = root(-2.0f * natural_log(uniform));
        const sine_cosine angle = sincos_of_turn(words[2 * pair + 1]);
        out[2 * pair] = radius * angle.cosine;
        out[2 * pair + 1] = radius * angle.sine;
    }
    return out;
}

}  // namespace latpar::inline v0::schedule::detail

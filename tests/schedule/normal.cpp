// SPDX-License-Identifier: Apache-2.0
// The logarithm, sine and cosine behind the noise, against the standard library's in long double.
#include <schedule/normal.hpp>
#include <support/catch.hpp>

#include <algorithm>
#include <cmath>
#include <numbers>

using namespace latpar::schedule::detail;

namespace {

/// The distance in units of the last place of `exact` as a float.
double ulps(float got, long double exact) {
    const int exponent = std::max(std::ilogb(exact), -126);
    return static_cast<double>(std::abs(got - exact) / std::ldexp(1.0L, exponent - 23));
}

}  // namespace

TEST_CASE("the logarithm is right to one unit in the last place") {
    double worst = 0;
    const auto check = [&](float x) {
        worst = std::max(worst, ulps(natural_log(x), std::log(static_cast<long double>(x))));
    };
    for (std::int64_t i = 0; i < std::int64_t{1} << 31; i += 2003) {
        check(std::ldexp(static_cast<float>(i), -31) + std::ldexp(1.0f, -32));
    }
    // Around 1, where the logarithm vanishes, and around the ends of the reduced range.
    for (const float centre : {1.0f, 0.70710678f, 1.41421356f, 0.5f, std::ldexp(1.0f, -32)}) {
        float x = centre;
        for (int i = 0; i < 1000; ++i, x = std::nextafter(x, 0.0f)) {
            if (x != 1.0f) check(x);
        }
        x = std::nextafter(centre, 2.0f);
        for (int i = 0; i < 1000; ++i, x = std::nextafter(x, 2.0f)) check(x);
    }
    CAPTURE(worst);
    CHECK(worst < 1);
    CHECK(natural_log(1) == 0);
}

TEST_CASE("sine and cosine are right to three units in the last place") {
    double worst = 0;
    const auto check = [&](std::uint32_t turn) {
        const long double angle =
            2 * std::numbers::pi_v<long double> * std::ldexp(static_cast<long double>(turn), -32);
        const sine_cosine got = sincos_of_turn(turn);
        worst =
            std::max({worst, ulps(got.sine, std::sin(angle)), ulps(got.cosine, std::cos(angle))});
    };
    for (std::uint64_t turn = 1; turn < std::uint64_t{1} << 32; turn += 4003) {
        check(static_cast<std::uint32_t>(turn));
    }
    // Around the ends of every quadrant and octant.
    for (std::uint32_t eighth = 0; eighth < 8; ++eighth) {
        for (std::uint32_t i = 1; i < 1000; ++i) {
            check((eighth << 29) + i);
            check((eighth << 29) - i);
        }
    }
    CAPTURE(worst);
    CHECK(worst < 3);
    const auto is = [](sine_cosine got, float sine, float cosine) {
        return got.sine == sine && got.cosine == cosine;
    };
    CHECK(is(sincos_of_turn(0), 0, 1));
    CHECK(is(sincos_of_turn(1u << 30), 1, 0));
    CHECK(is(sincos_of_turn(2u << 30), 0, -1));
    CHECK(is(sincos_of_turn(3u << 30), -1, 0));
}

TEST_CASE("the smallest and the largest bits give finite numbers") {
    const auto root = [](float x) { return std::sqrt(x); };
    for (const std::uint32_t a : {0u, 1u, 0x7fffffffu, 0xfffffffeu, 0xffffffffu}) {
        for (const std::uint32_t b : {0u, 0x3fffffffu, 0x80000000u, 0xffffffffu}) {
            for (const float value : normal4({a, b, b, a}, root)) {
                CHECK(std::abs(value) < 6.67f);
            }
        }
    }
    // ln 2^-32 is the most that 31 bits and a half can give.
    CHECK(normal4({0, 0, 0, 0}, root)[0] == Approx(std::sqrt(2 * 32 * std::log(2.0))));
}

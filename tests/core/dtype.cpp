// SPDX-License-Identifier: Apache-2.0
// Conversions between element types, against arithmetic in double precision.
#include <latpar/core/dtype.hpp>

#include <support/catch.hpp>

#include <cmath>
#include <limits>
#include <random>

using namespace latpar;

namespace {

/// `value` rounded to `digits` significant bits, half to even, with IEEE's subnormals and overflow.
double rounded(double value, int digits, int lowest_exponent, double overflow) {
    if (value == 0 || !std::isfinite(value)) return value;
    const int exponent = std::max(std::ilogb(value), lowest_exponent);
    const double quantum = std::ldexp(1, exponent - digits + 1);
    const double out = std::nearbyint(value / quantum) * quantum;
    return std::abs(out) >= overflow ? std::copysign(HUGE_VAL, value) : out;
}

bool is_half_of(float value) {
    const float got = to_float(to_float16(value));
    if (std::isnan(value)) return std::isnan(got);
    const double want = rounded(value, 11, -14, 65536);
    return got == want && std::signbit(got) == std::signbit(value);
}

bool is_bfloat_of(float value) {
    const float got = to_float(to_bfloat16(value));
    if (std::isnan(value)) return std::isnan(got);
    const double want = rounded(value, 8, -126, std::ldexp(1, 128));
    return got == want && std::signbit(got) == std::signbit(value);
}

float from_bits(std::uint32_t bits) {
    return std::bit_cast<float>(bits);
}

}  // namespace

TEST_CASE("every half converts to its value, and back to its bits") {
    index_t wrong = 0;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const float16 half{static_cast<std::uint16_t>(bits)};
        const float got = to_float(half);
        const int exponent = (bits >> 10) & 31;
        const int mantissa = bits & 1023;
        if (exponent == 31 && mantissa != 0) {
            // A NaN stays one, and is quiet after the way back.
            if (!std::isnan(got) || to_float16(got).bits != (bits | 0x200u)) ++wrong;
            continue;
        }
        double want = exponent == 31  ? HUGE_VAL
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(1024 + mantissa, exponent - 25);
        if (bits & 0x8000u) want = -want;
        if (got != want || std::signbit(got) != std::signbit(want)) ++wrong;
        if (to_float16(got) != half) ++wrong;
    }
    CHECK(wrong == 0);
}

TEST_CASE("every bfloat converts to its value, and back to its bits") {
    index_t wrong = 0;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const bfloat16 value{static_cast<std::uint16_t>(bits)};
        const float got = to_float(value);
        if (std::isnan(got)) {
            if (to_bfloat16(got).bits != (bits | 0x40u)) ++wrong;
            continue;
        }
        const int exponent = (bits >> 7) & 255;
        const int mantissa = bits & 127;
        double want = exponent == 255 ? HUGE_VAL
                      : exponent == 0 ? std::ldexp(mantissa, -133)
                                      : std::ldexp(128 + mantissa, exponent - 134);
        if (bits & 0x8000u) want = -want;
        if (got != want || std::signbit(got) != std::signbit(want)) ++wrong;
        if (to_bfloat16(got) != value) ++wrong;
    }
    CHECK(wrong == 0);
}

TEST_CASE("floats round to the nearest half and bfloat, ties to even") {
    index_t wrong = 0;
    const auto check = [&](float value) {
        wrong += !is_half_of(value);
        wrong += !is_bfloat_of(value);
    };
    // The surroundings of every value and of every midpoint between two.
    for (std::uint32_t top = 0; top < 65536; ++top) {
        const auto half = to_float(float16{static_cast<std::uint16_t>(top)});
        const auto half_bits = std::bit_cast<std::uint32_t>(half);
        for (const std::uint32_t low : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x1fffu}) {
            if (std::isfinite(half)) check(from_bits(half_bits + low));
        }
        if ((top & 0x7c00u) == 0) {
            const float quantum = std::ldexp(1.0f, -24);
            check(half + 0.5f * quantum);
            check(std::nextafter(half + 0.5f * quantum, 1.0f));
            check(std::nextafter(half + 0.5f * quantum, -1.0f));
        }
        for (const std::uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
            check(from_bits((top << 16) | low));
        }
    }
    for (const float edge :
         {65504.0f, 65519.996f, 65520.0f, std::ldexp(1.0f, -24), std::ldexp(1.0f, -25),
          std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min()}) {
        check(edge);
        check(-edge);
    }
    std::mt19937 generator(7);
    for (int i = 0; i < 500000; ++i) check(from_bits(static_cast<std::uint32_t>(generator())));
    CHECK(wrong == 0);
}

TEST_CASE("element types have the sizes and names that travel") {
    CHECK(size_of(dtype::f16) == 2);
    CHECK(size_of(dtype::bf16) == 2);
    CHECK(size_of(dtype::f32) == 4);
    CHECK(size_of(dtype::i64) == 8);
    CHECK(name_of(dtype::bf16) == "bf16");
    CHECK(dtype_of<const bfloat16> == dtype::bf16);
    CHECK(dtype_of<std::byte> == dtype::u8);
    CHECK(is_floating(dtype::f16));
    CHECK_FALSE(is_floating(dtype::i32));
}

TEST_CASE("only f32, bf16 and f16 are computed with") {
    CHECK(visit_floating(dtype::f16, []<class T>() { return dtype_of<T>; }) == dtype::f16);
    CHECK_THROWS_WITH(visit_floating(dtype::i32, []<class T>() { return 0; }),
                      ContainsSubstring("i32") && ContainsSubstring("use f32, bf16 or f16"));
}

// SPDX-License-Identifier: Apache-2.0
// Element types: their names, sizes and conversions.
#pragma once

#if __cplusplus < 202002L && !(defined(_MSVC_LANG) && _MSVC_LANG >= 202002L)
#error "latpar is C++20: compile with -std=c++20 or later, CUDA sources too"
#endif

#include <latpar/core/error.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace latpar::inline v0 {

/// Signed size and index type of the whole library.
using index_t = std::int64_t;

/// Element type of a view or a message.
enum class dtype : std::uint8_t { u8, i32, i64, f16, bf16, f32, f64 };

/// IEEE binary16 as stored; arithmetic happens in float.
struct float16 {
    std::uint16_t bits = 0;
    friend bool operator==(float16, float16) = default;
};

/// bfloat16 as stored; arithmetic happens in float.
struct bfloat16 {
    std::uint16_t bits = 0;
    friend bool operator==(bfloat16, bfloat16) = default;
};

/// Bytes of one element.
[[nodiscard]] constexpr index_t size_of(dtype type) noexcept {
    switch (type) {
        case dtype::u8:
            return 1;
        case dtype::f16:
        case dtype::bf16:
            return 2;
        case dtype::i32:
        case dtype::f32:
            return 4;
        case dtype::i64:
        case dtype::f64:
            return 8;
    }
    return 0;
}

/// The short lower-case name, e.g. "bf16".
[[nodiscard]] constexpr std::string_view name_of(dtype type) noexcept {
    switch (type) {
        case dtype::u8:
            return "u8";
        case dtype::i32:
            return "i32";
        case dtype::i64:
            return "i64";
        case dtype::f16:
            return "f16";
        case dtype::bf16:
            return "bf16";
        case dtype::f32:
            return "f32";
        case dtype::f64:
            return "f64";
    }
    return "?";
}

[[nodiscard]] constexpr bool is_floating(dtype type) noexcept {
    return type == dtype::f16 || type == dtype::bf16 || type == dtype::f32 || type == dtype::f64;
}

namespace detail {

template <class T>
[[nodiscard]] consteval dtype dtype_for() {
    if constexpr (std::is_same_v<T, float>) {
        return dtype::f32;
    } else if constexpr (std::is_same_v<T, bfloat16>) {
        return dtype::bf16;
    } else if constexpr (std::is_same_v<T, float16>) {
        return dtype::f16;
    } else if constexpr (std::is_same_v<T, double>) {
        return dtype::f64;
    } else if constexpr (std::is_same_v<T, std::int32_t>) {
        return dtype::i32;
    } else if constexpr (std::is_same_v<T, std::int64_t>) {
        return dtype::i64;
    } else {
        static_assert(sizeof(T) == 1, "latpar has no dtype for this element type");
        return dtype::u8;
    }
}

}  // namespace detail

/// The dtype of a C++ element type.
template <class T>
inline constexpr dtype dtype_of = detail::dtype_for<std::remove_cv_t<T>>();

/// Rounds to nearest even; NaN stays NaN (quiet).
[[nodiscard]] constexpr bfloat16 to_bfloat16(float value) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return {static_cast<std::uint16_t>((bits >> 16) | 0x0040u)};
    }
    const std::uint32_t rounding = 0x7fffu + ((bits >> 16) & 1u);
    return {static_cast<std::uint16_t>((bits + rounding) >> 16)};
}

[[nodiscard]] constexpr float to_float(bfloat16 value) noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

/// Rounds to nearest even; overflows to infinity, underflows through subnormals; NaN stays NaN.
[[nodiscard]] constexpr float16 to_float16(float value) noexcept {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return {static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
    }
    if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
    if (magnitude < 0x38800000u) {
        // Subnormal result: adding 0.5 leaves the rounded value in the low mantissa bits.
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return {static_cast<std::uint16_t>(
            sign | (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0.5f)))};
    }
    const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

[[nodiscard]] constexpr float to_float(float16 value) noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
    const std::uint32_t exponent = (value.bits >> 10) & 0x1fu;
    std::uint32_t mantissa = value.bits & 0x3ffu;
    if (exponent == 0x1fu) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
    if (exponent == 0) {
        const float magnitude = static_cast<float>(mantissa) * (1.0f / 16777216.0f);
        return sign ? -magnitude : magnitude;
    }
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

[[nodiscard]] constexpr float to_float(float value) noexcept {
    return value;
}

/// `value` as an element of type T, rounded to nearest even.
template <class T>
[[nodiscard]] constexpr T from_float(float value) noexcept {
    if constexpr (std::is_same_v<T, bfloat16>) {
        return to_bfloat16(value);
    } else if constexpr (std::is_same_v<T, float16>) {
        return to_float16(value);
    } else {
        static_assert(std::is_same_v<T, float>, "only f32, bf16 and f16 are computed with");
        return value;
    }
}

/// Calls `f.template operator()<T>()` with the floating type that travels as `type`.
///
/// Errors: usage_error if `type` is not f32, bf16 or f16.
template <class F>
decltype(auto) visit_floating(dtype type, F&& f) {
    switch (type) {
        case dtype::f32:
            return f.template operator()<float>();
        case dtype::bf16:
            return f.template operator()<bfloat16>();
        case dtype::f16:
            return f.template operator()<float16>();
        default:
            throw usage_error(detail::concat("dtype ", name_of(type),
                                             " cannot be computed with; use f32, bf16 or f16"));
    }
}

}  // namespace latpar::inline v0

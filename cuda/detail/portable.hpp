// SPDX-License-Identifier: Apache-2.0
// What a kernel's thread is written in: the device compiles it, and so do the tests of the host.
#pragma once

#include <latpar/core/dtype.hpp>

#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define LATPAR_DEVICE __host__ __device__ __forceinline__
#else
#define LATPAR_DEVICE inline
#endif

// Arrays that are to be registers need loops that are gone.
#ifdef __CUDA_ARCH__
#define LATPAR_UNROLL _Pragma("unroll")
#else
#define LATPAR_UNROLL
#endif

namespace latpar::inline v0::cuda::detail {

/// Threads of every block.
inline constexpr std::uint32_t block_threads = 256;

/// Up to 16 bytes of neighbouring elements, in registers.
struct group {
    std::uint32_t words[4];
};

/// On the host an access that a device would trap on throws.
template <int Bytes>
LATPAR_DEVICE void check_alignment([[maybe_unused]] const std::byte* at) {
#ifndef __CUDA_ARCH__
    latpar::detail::require(reinterpret_cast<std::uintptr_t>(at) % Bytes == 0, "an access of ",
                            Bytes, " bytes at a misaligned address");
#endif
}

template <int Bytes>
LATPAR_DEVICE void load(const std::byte* from, std::uint32_t* words) {
    static_assert(Bytes == 16 || Bytes == 8 || Bytes == 4);
    check_alignment<Bytes>(from);
#ifdef __CUDA_ARCH__
    if constexpr (Bytes == 16) {
        const uint4 value = *reinterpret_cast<const uint4*>(from);
        words[0] = value.x;
        words[1] = value.y;
        words[2] = value.z;
        words[3] = value.w;
    } else if constexpr (Bytes == 8) {
        const uint2 value = *reinterpret_cast<const uint2*>(from);
        words[0] = value.x;
        words[1] = value.y;
    } else {
        words[0] = *reinterpret_cast<const std::uint32_t*>(from);
    }
#else
    std::memcpy(words, from, Bytes);
#endif
}

template <int Bytes>
LATPAR_DEVICE void store(std::byte* to, const std::uint32_t* words) {
    static_assert(Bytes == 16 || Bytes == 8 || Bytes == 4);
    check_alignment<Bytes>(to);
#ifdef __CUDA_ARCH__
    if constexpr (Bytes == 16) {
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    } else if constexpr (Bytes == 8) {
        *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
        *reinterpret_cast<std::uint32_t*>(to) = words[0];
    }
#else
    std::memcpy(to, words, Bytes);
#endif
}

LATPAR_DEVICE std::uint16_t load_half(const std::byte* from) {
    check_alignment<2>(from);
#ifdef __CUDA_ARCH__
    return *reinterpret_cast<const std::uint16_t*>(from);
#else
    std::uint16_t value = 0;
    std::memcpy(&value, from, 2);
    return value;
#endif
}

LATPAR_DEVICE void store_half(std::byte* to, std::uint16_t value) {
    check_alignment<2>(to);
#ifdef __CUDA_ARCH__
    *reinterpret_cast<std::uint16_t*>(to) = value;
#else
    std::memcpy(to, &value, 2);
#endif
}

/// The bits of element `e`, of `Size` bytes.
template <int Size>
LATPAR_DEVICE std::uint32_t bits_of(const group& values, int e) {
    if constexpr (Size == 4) return values.words[e];
    return e % 2 ? values.words[e / 2] >> 16 : values.words[e / 2] & 0xffffu;
}

/// Sets element `e`; the elements of two bytes in rising order, since an even one clears its word.
template <int Size>
LATPAR_DEVICE void set_bits(group& values, int e, std::uint32_t bits) {
    if constexpr (Size == 4) {
        values.words[e] = bits;
    } else if (e % 2) {
        values.words[e / 2] |= bits << 16;
    } else {
        values.words[e / 2] = bits;
    }
}

/// `Count` neighbours by accesses of `Width` elements each.
template <int Size, int Count, int Width>
LATPAR_DEVICE void load_whole(const std::byte* from, group& values) {
    LATPAR_UNROLL
    for (int i = 0; i < Count / Width; ++i) {
        load<Size * Width>(from + i * Size * Width, values.words + i * Size * Width / 4);
    }
}

/// Elements [begin, end) of `Count`, one by one; the others are 0.
template <int Size, int Count>
LATPAR_DEVICE void load_some(const std::byte* from, std::int64_t step, int begin, int end,
                             group& values) {
    LATPAR_UNROLL
    for (int e = 0; e < Count; ++e) {
        std::uint32_t bits = 0;
        if (e >= begin && e < end) {
            if constexpr (Size == 4) {
                load<4>(from + e * step, &bits);
            } else {
                bits = load_half(from + e * step);
            }
        }
        set_bits<Size>(values, e, bits);
    }
}

/// Elements [begin, end) of `Count`: by accesses of `width` neighbours if it is above 1 and all
/// are wanted.
template <int Size, int Count>
LATPAR_DEVICE void load_group(const std::byte* from, std::int64_t step, int width, int begin,
                              int end, group& values) {
    static_assert(Count == 8 || Count == 4);
    if (width < 2 || begin > 0 || end < Count) {
        load_some<Size, Count>(from, step, begin, end, values);
    } else if (width == Count) {
        load_whole<Size, Count, Count>(from, values);
    } else if (width == 2) {
        load_whole<Size, Count, 2>(from, values);
    } else {
        load_whole<Size, Count, Count / 2>(from, values);
    }
}

template <int Size, int Count>
LATPAR_DEVICE void store_group(std::byte* to, std::int64_t step, int width, int begin, int end,
                               const group& values) {
    if (width == Count && begin == 0 && end == Count) {
        store<Size * Count>(to, values.words);
        return;
    }
    LATPAR_UNROLL
    for (int e = 0; e < Count; ++e) {
        if (e < begin || e >= end) continue;
        const std::uint32_t bits = bits_of<Size>(values, e);
        if constexpr (Size == 4) {
            store<4>(to + e * step, &bits);
        } else {
            store_half(to + e * step, static_cast<std::uint16_t>(bits));
        }
    }
}

/// The value of an element by its bits, exact.
template <class T>
LATPAR_DEVICE float widen(std::uint32_t bits) {
    if constexpr (sizeof(T) == 4) {
        return std::bit_cast<float>(bits);
    } else {
        const T value{static_cast<std::uint16_t>(bits)};
#ifdef __CUDA_ARCH__
        // The instruction would not keep what a NaN carries.
        if constexpr (std::is_same_v<T, float16>) {
            if ((value.bits & 0x7fffu) <= 0x7c00u) {
                return __half2float(__ushort_as_half(value.bits));
            }
        }
#endif
        return to_float(value);
    }
}

/// The bits of `value` as an element of type T, rounded to nearest even.
template <class T>
LATPAR_DEVICE std::uint32_t narrow(float value) {
    if constexpr (sizeof(T) == 4) {
        return std::bit_cast<std::uint32_t>(value);
    } else {
#ifdef __CUDA_ARCH__
        if (value == value) {
            if constexpr (std::is_same_v<T, float16>) {
                return __half_as_ushort(__float2half_rn(value));
            } else {
                return __bfloat16_as_ushort(__float2bfloat16_rn(value));
            }
        }
#endif
        return from_float<T>(value).bits;
    }
}

/// Four elements of a type that is known at run time.
LATPAR_DEVICE void load_four(dtype type, const std::byte* from, std::int64_t step, int width,
                             int begin, int end, group& values) {
    if (type == dtype::f32) {
        load_group<4, 4>(from, step, width, begin, end, values);
    } else {
        load_group<2, 4>(from, step, width, begin, end, values);
    }
}

LATPAR_DEVICE void widen_four(dtype type, const group& values, float* out) {
    LATPAR_UNROLL
    for (int e = 0; e < 4; ++e) {
        if (type == dtype::f32) {
            out[e] = widen<float>(values.words[e]);
        } else if (type == dtype::bf16) {
            out[e] = widen<bfloat16>(bits_of<2>(values, e));
        } else {
            out[e] = widen<float16>(bits_of<2>(values, e));
        }
    }
}

LATPAR_DEVICE void store_four(dtype type, std::byte* to, std::int64_t step, int width, int begin,
                              int end, const float* values) {
    group out;
    if (type == dtype::f32) {
        LATPAR_UNROLL
        for (int e = 0; e < 4; ++e) out.words[e] = narrow<float>(values[e]);
        store_group<4, 4>(to, step, width, begin, end, out);
    } else {
        LATPAR_UNROLL
        for (int e = 0; e < 4; ++e) {
            set_bits<2>(
                out, e,
                type == dtype::bf16 ? narrow<bfloat16>(values[e]) : narrow<float16>(values[e]));
        }
        store_group<2, 4>(to, step, width, begin, end, out);
    }
}

}  // namespace latpar::inline v0::cuda::detail

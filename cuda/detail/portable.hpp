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

/// What the L2 cache keeps track of: it knows of each sector which bytes it has.
inline constexpr int sector_bytes = 32;

/// Up to eight neighbouring elements, in registers.
struct group {
    std::uint32_t words[8];
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

/// Asks for the sector that begins at `at` if it is wanted, of device memory.
///
/// What a store leaves of a sector is read from memory when the sector leaves the cache, one by
/// one. Asked for before, it is read with all else: rows of 60 of 104 floats take three
/// fifths of the time.
LATPAR_DEVICE void prefetch_sector([[maybe_unused]] std::uintptr_t at,
                                   [[maybe_unused]] bool is_wanted) {
#ifdef __CUDA_ARCH__
    // Each is predicated by itself: a branch would part the loads around it. Before sm_90 there is
    // only one that fetches 128 bytes.
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .pred p; setp.ne.s32 p, %1, 0; @p cp.async.bulk.prefetch.L2.global [%0], 32; }" ::
            "l"(at),
        "r"(static_cast<int>(is_wanted)));
#else
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p prefetch.global.L2 [%0]; }" ::"l"(at),
                 "r"(static_cast<int>(is_wanted)));
#endif
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

/// The most neighbours of one access.
template <int Size, int Count>
inline constexpr int widest = Size* Count > 16 ? 16 / Size : Count;

/// Elements [begin, end) of `Count`: by accesses of `width` neighbours if it is above 1 and all
/// are wanted.
template <int Size, int Count>
LATPAR_DEVICE void load_group(const std::byte* from, std::int64_t step, int width, int begin,
                              int end, group& values) {
    static_assert(Count == 8 || Count == 4);
    if (width < 2 || begin > 0 || end < Count) {
        load_some<Size, Count>(from, step, begin, end, values);
    } else if (width >= widest<Size, Count>) {
        load_whole<Size, Count, widest<Size, Count>>(from, values);
    } else if (width == 2) {
        load_whole<Size, Count, 2>(from, values);
    } else {
        load_whole<Size, Count, 4>(from, values);
    }
}

/// Those of [begin, end) that are among the `Count` elements from `First` on, by the widest
/// accesses that write no other; the elements from `First` on begin at a multiple of `Count`.
template <int Size, int First, int Count>
LATPAR_DEVICE void store_part(std::byte* to, int begin, int end, const group& values) {
    if (end <= First || begin >= First + Count) return;
    if constexpr (Count == 1) {
        const std::uint32_t bits = bits_of<Size>(values, First);
        if constexpr (Size == 4) {
            store<4>(to + First * Size, &bits);
        } else {
            store_half(to + First * Size, static_cast<std::uint16_t>(bits));
        }
    } else {
        if constexpr (Size * Count <= 16) {
            if (begin <= First && end >= First + Count) {
                store<Size * Count>(to + First * Size, values.words + First * Size / 4);
                return;
            }
        }
        store_part<Size, First, Count / 2>(to, begin, end, values);
        store_part<Size, First + Count / 2, Count / 2>(to, begin, end, values);
    }
}

/// Elements [begin, end) of `Count`, which begin at a multiple of `width`.
template <int Size, int Count>
LATPAR_DEVICE void store_group(std::byte* to, std::int64_t step, int width, int begin, int end,
                               const group& values) {
    if (width == Count) {
        store_part<Size, 0, Count>(to, begin, end, values);
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

/// The bits of two values, the first in the lower half.
template <class T>
LATPAR_DEVICE std::uint32_t narrow_two(float first, float second) {
#ifdef __CUDA_ARCH__
    if (first == first && second == second) {
        if constexpr (std::is_same_v<T, float16>) {
            return std::bit_cast<std::uint32_t>(__half2_raw(__floats2half2_rn(first, second)));
        } else {
            return std::bit_cast<std::uint32_t>(
                __nv_bfloat162_raw(__floats2bfloat162_rn(first, second)));
        }
    }
#endif
    return narrow<T>(first) | narrow<T>(second) << 16;
}

LATPAR_DEVICE float widen_one(dtype type, std::uint32_t bits) {
    if (type == dtype::f32) return widen<float>(bits);
    return type == dtype::bf16 ? widen<bfloat16>(bits) : widen<float16>(bits);
}

LATPAR_DEVICE std::uint32_t narrow_one(dtype type, float value) {
    if (type == dtype::f32) return narrow<float>(value);
    return type == dtype::bf16 ? narrow<bfloat16>(value) : narrow<float16>(value);
}

// What follows is for elements of a type that is known at run time, the same for all threads, so
// it is asked for once for all items of a thread.

template <class T, int Count, int Items>
LATPAR_DEVICE void widen_as(const group (&values)[Items], float (&out)[Items][Count]) {
    LATPAR_UNROLL
    for (int u = 0; u < Items; ++u) {
        LATPAR_UNROLL
        for (int e = 0; e < Count; ++e) out[u][e] = widen<T>(bits_of<sizeof(T)>(values[u], e));
    }
}

template <int Count, int Items>
LATPAR_DEVICE void widen_items(dtype type, const group (&values)[Items],
                               float (&out)[Items][Count]) {
    if (type == dtype::f32) {
        widen_as<float>(values, out);
    } else if (type == dtype::bf16) {
        widen_as<bfloat16>(values, out);
    } else {
        widen_as<float16>(values, out);
    }
}

template <int Size, int Count, int Items>
LATPAR_DEVICE void load_as(std::byte* const (&from)[Items], std::int64_t step, int width, int begin,
                           const int (&end)[Items], group (&values)[Items]) {
    // The two cases that matter, all of the groups by the widest accesses or by the narrowest, are
    // told apart once; all others for each item.
    bool whole = begin == 0;
    LATPAR_UNROLL
    for (int u = 0; u < Items; ++u) whole = whole && end[u] == Count;
    if (whole && width == Count) {
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) {
            load_whole<Size, Count, widest<Size, Count>>(from[u], values[u]);
        }
    } else if (whole && width < 2) {
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) {
            load_some<Size, Count>(from[u], step, 0, Count, values[u]);
        }
    } else {
        LATPAR_UNROLL
        for (int u = 0; u < Items; ++u) {
            load_group<Size, Count>(from[u], step, width, begin, end[u], values[u]);
        }
    }
}

/// Elements [begin, end) of the groups of `Count` that begin at `from`.
template <int Count, int Items>
LATPAR_DEVICE void load_items(dtype type, std::byte* const (&from)[Items], std::int64_t step,
                              int width, int begin, const int (&end)[Items],
                              group (&values)[Items]) {
    if (type == dtype::f32) {
        load_as<4, Count>(from, step, width, begin, end, values);
    } else {
        load_as<2, Count>(from, step, width, begin, end, values);
    }
}

template <class T, int Count, int Items>
LATPAR_DEVICE void store_as(std::byte* const (&to)[Items], std::int64_t step, int width,
                            const int (&end)[Items], const float (&values)[Items][Count]) {
    LATPAR_UNROLL
    for (int u = 0; u < Items; ++u) {
        group out;
        LATPAR_UNROLL
        for (int e = 0; e < Count; e += 2) {
            if constexpr (sizeof(T) == 4) {
                out.words[e] = narrow<T>(values[u][e]);
                out.words[e + 1] = narrow<T>(values[u][e + 1]);
            } else {
                out.words[e / 2] = narrow_two<T>(values[u][e], values[u][e + 1]);
            }
        }
        store_group<sizeof(T), Count>(to[u], step, width, 0, end[u], out);
    }
}

/// Rounds the values and stores the first `end` of each item.
template <int Count, int Items>
LATPAR_DEVICE void store_items(dtype type, std::byte* const (&to)[Items], std::int64_t step,
                               int width, const int (&end)[Items],
                               const float (&values)[Items][Count]) {
    if (type == dtype::f32) {
        store_as<float>(to, step, width, end, values);
    } else if (type == dtype::bf16) {
        store_as<bfloat16>(to, step, width, end, values);
    } else {
        store_as<float16>(to, step, width, end, values);
    }
}

}  // namespace latpar::inline v0::cuda::detail

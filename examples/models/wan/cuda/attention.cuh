// SPDX-License-Identifier: Apache-2.0
// What the kernels of attention have in common.
#pragma once

#include <cuda_bf16.h>
#include <wan/cuda/attention_kernels.hpp>
#include <wan/cuda/check.hpp>

#include <cstdint>

namespace wan::cuda {

/// Below every score; no infinity, whose difference is no number.
inline constexpr float lowest = -1.0e30f;

__device__ inline std::uint32_t shared_address(const void* memory) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
}

__device__ inline std::uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&both);
}

__device__ inline float power_of_two(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(out) : "f"(x));
    return out;
}

/// One block of threads for each head of so many queries.
template <class Kernel>
void launch(Kernel kernel, const attention_task& task, int queries, int threads, std::size_t bytes,
            latpar::stream_ref stream) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          "taking shared memory for attention");
    const dim3 blocks(static_cast<unsigned>((task.queries + queries - 1) / queries),
                      static_cast<unsigned>(task.heads));
    kernel<<<blocks, threads, bytes, native(stream)>>>(task);
}

/// Calls `f<Dim>()` with the elements that a head is padded to.
template <class F>
void with_padded_head(index_t head_dim, const F& f) {
    if (head_dim <= 16) {
        f.template operator()<16>();
    } else if (head_dim <= 32) {
        f.template operator()<32>();
    } else if (head_dim <= 48) {
        f.template operator()<48>();
    } else if (head_dim <= 64) {
        f.template operator()<64>();
    } else if (head_dim <= 96) {
        f.template operator()<96>();
    } else {
        f.template operator()<128>();
    }
}

}  // namespace wan::cuda

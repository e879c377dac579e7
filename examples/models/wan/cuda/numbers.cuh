// SPDX-License-Identifier: Apache-2.0
// Numbers of either type of the model, in device code.
#pragma once

#include <latpar/core/dtype.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace wan::cuda {

__device__ inline float load_number(const float* from) {
    return *from;
}
__device__ inline float load_number(const __nv_bfloat16* from) {
    return __bfloat162float(*from);
}
__device__ inline float load_number(const __half* from) {
    return __half2float(*from);
}
__device__ inline float load_number(const double* from) {
    return static_cast<float>(*from);
}
__device__ inline void store_number(float* to, float value) {
    *to = value;
}
__device__ inline void store_number(__nv_bfloat16* to, float value) {
    *to = __float2bfloat16_rn(value);
}
__device__ inline void store_number(__half* to, float value) {
    *to = __float2half_rn(value);
}
__device__ inline void store_number(double* to, float value) {
    *to = value;
}

/// `Count` neighbours that lie aligned, as one access.
template <int Count, class T>
struct alignas(Count * sizeof(T)) packed_numbers {
    T values[Count];
};

template <int Count, class T>
__device__ inline void load_numbers(const T* from, float (&to)[Count]) {
    const auto all = *reinterpret_cast<const packed_numbers<Count, T>*>(from);
#pragma unroll
    for (int i = 0; i < Count; ++i) to[i] = load_number(&all.values[i]);
}
template <int Count, class T>
__device__ inline void store_numbers(T* to, const float (&from)[Count]) {
    packed_numbers<Count, T> all;
#pragma unroll
    for (int i = 0; i < Count; ++i) store_number(&all.values[i], from[i]);
    *reinterpret_cast<packed_numbers<Count, T>*>(to) = all;
}

/// Calls `f` with a null pointer to the model's type.
template <class F>
void with_model_type(latpar::dtype type, const F& f) {
    if (type == latpar::dtype::bf16) {
        f(static_cast<__nv_bfloat16*>(nullptr));
    } else {
        f(static_cast<float*>(nullptr));
    }
}

}  // namespace wan::cuda

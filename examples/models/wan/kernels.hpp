// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the transformer on blocks of rows, as a table that each instruction set fills.
#pragma once

#include <cstddef>

namespace wan {

using extent = std::ptrdiff_t;

/// Rows that one task works on. Results depend on the blocks, hence never on the thread count.
inline constexpr extent row_block = 96;
/// Keys that attention looks at together.
inline constexpr extent key_block = 256;

/// One head of attention for up to `row_block` queries. Strides count floats from token to token.
struct attention_tile {
    const float* q;
    const float* k;
    const float* v;
    float* out;
    float* lse;  ///< log of the sum of exponentials of the scaled scores; null if not wanted
    extent q_stride, k_stride, v_stride, out_stride, lse_stride;
    extent queries, keys, head_dim;
    float scale;
    float* scratch;  ///< attention_scratch(head_dim) floats
};

[[nodiscard]] constexpr extent attention_scratch(extent head_dim) noexcept {
    return row_block * (2 * head_dim + key_block + 2);
}

/// Single-threaded kernels; matrices are dense and row-major.
struct kernel_table {
    const char* name;
    /// y [rows, out] = x [rows, in] * weight [in, out] + bias [out]
    void (*linear)(const float* x, extent rows, extent in, const float* weight, const float* bias,
                   extent out, float* y);
    /// y = normalise(x) * multiply + add, row by row; both [width]
    void (*layer_norm)(const float* x, extent rows, extent width, float eps, const float* multiply,
                       const float* add, float* y);
    /// y = x / rms(x) * weight, row by row; y may be x
    void (*rms_norm)(const float* x, extent rows, extent width, float eps, const float* weight,
                     float* y);
    /// Turns the pairs (2i, 2i + 1) of every head of one row; cosine and sine [head_dim / 2]
    void (*rotate)(float* row, extent heads, extent head_dim, const float* cosine,
                   const float* sine);
    /// GELU, by tanh
    void (*gelu)(float* x, extent count);
    void (*silu)(float* x, extent count);
    /// x += y * gate, row by row; a null gate is 1
    void (*add_gated)(float* x, const float* y, const float* gate, extent rows, extent width);
    void (*attend)(const attention_tile& tile);
};

}  // namespace wan

// SPDX-License-Identifier: Apache-2.0
// The transformer's arithmetic on a GPU but for its matrix products: rows, patches and times.
#pragma once

#include <latpar/core/view.hpp>

#include <array>
#include <cstdint>
#include <span>

namespace wan::cuda {

using latpar::index_t;

// All are ordered on the stream and neither wait for it nor take memory; what they are given by
// value is taken before they return. A row's result does not depend on how many rows there are.
// `type` is that of rows given as void*, f32 or bf16; sums are float32.

/// A vector of the model's width for each token: fixed[i] + moving[frame * stride + i]. Without
/// `moving` it is the same for all, without `fixed` there is none.
struct token_vector {
    const float* fixed = nullptr;
    const float* moving = nullptr;
};

/// hidden += (change + bias) * gate, then out = normalise(hidden) * (multiply + one) + add.
///
/// Without `change` the first is left out, without `out` the second; without a gate it is 1.
struct row_update {
    float* hidden;
    index_t rows;
    index_t width;
    float eps;
    latpar::dtype type;
    const void* change = nullptr;
    const float* bias = nullptr;
    token_vector gate{};
    void* out = nullptr;
    token_vector multiply{};
    token_vector add{};
    float one = 0.0f;
    // Token first + row is of frame (first + row) / area, of frame 0 if area is 0.
    index_t first = 0;
    index_t area = 0;
    index_t stride = 0;
};
void update_rows(const row_update& task, latpar::stream_ref stream);

/// Where the heads of a row turn to: row + first is a token of the grid.
struct rotation {
    std::array<const float*, 3> tables{};  ///< [positions, pairs, 2]; null: no rotation
    latpar::extents3 pairs{};
    latpar::extents3 grid{};
    latpar::extents3 origin{};
    index_t first = 0;
};
/// x = rotate((x + bias) / rms(x + bias) * weight), in place; without a bias it is 0.
void normalize_heads(void* x, index_t rows, index_t width, index_t head_dim, latpar::dtype type,
                     const float* bias, const float* weight, float eps, const rotation& turn,
                     latpar::stream_ref stream);

/// x += bias, row by row.
void add_bias(void* x, index_t rows, index_t width, latpar::dtype type, const float* bias,
              latpar::stream_ref stream);
/// x = gelu(x + bias), by tanh.
void add_bias_gelu(void* x, index_t rows, index_t width, latpar::dtype type, const float* bias,
                   latpar::stream_ref stream);
/// x = bias in every row.
void fill_rows(float* x, index_t rows, index_t width, const float* bias, latpar::stream_ref stream);

/// How tokens lie in a latent.
struct patch_layout {
    latpar::extents3 patch{};
    latpar::extents3 grid{};
};
/// Patches of tokens [first, first + rows) of one sample, into columns [column, ...) of
/// out [rows, columns]: channel by channel, the patch's positions one after another.
void gather_patches(latpar::const_latent_view z, index_t sample, const patch_layout& layout,
                    index_t first, index_t rows, void* out, latpar::dtype type, index_t columns,
                    index_t column, latpar::stream_ref stream);
/// patches [tokens, patch, channels] of float32 into one sample of a prediction.
void scatter_patches(const float* patches, const patch_layout& layout,
                     latpar::latent_view prediction, index_t sample, latpar::stream_ref stream);

/// Values of the host into device memory, as parameters of kernels.
void store_values(std::span<const float> values, float* out, latpar::stream_ref stream);
/// out [count, 2 half] = cosines, then sines, of times [count] * frequencies [half].
void time_waves(const float* times, index_t count, const float* frequencies, index_t half,
                float* out, latpar::stream_ref stream);
/// y [rows, out] = f(x [rows, in]) * weight + bias for a few rows of float32; f is silu or nothing.
void small_linear(const float* x, index_t rows, index_t in, const void* weight, latpar::dtype type,
                  const float* bias, index_t out, float* y, bool is_silu,
                  latpar::stream_ref stream);

/// Values in [centre - spread, centre + spread), by their index and `seed`.
void fill_random(void* out, index_t elements, latpar::dtype type, float spread, float centre,
                 std::uint64_t seed, latpar::stream_ref stream);

/// Waits for all that the current device has to do.
void wait_for_device();

}  // namespace wan::cuda

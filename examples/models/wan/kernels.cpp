// SPDX-License-Identifier: Apache-2.0
// The kernels on Eigen, compiled once for each instruction set.
//
// The build renames Eigen's namespace in each of these objects (-DEigen=...): inline functions of
// the same name but of different instruction sets must not meet in one program, where the linker
// would keep any one of them. For the same reason nothing here may call an inline function of the
// standard library that the compiler does not expand in place; a test looks at the symbols.
#include <wan/kernels.hpp>

#include <Eigen/Core>

#if !EIGEN_VERSION_AT_LEAST(3, 4, 0)
#error "Eigen 3.4 or newer is needed"
#endif
#if !defined(WAN_KERNELS)
#error "WAN_KERNELS must name the table, e.g. -DWAN_KERNELS=avx2"
#endif

namespace wan {
namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using const_matrix = Eigen::Map<const matrix, Eigen::Unaligned, Eigen::OuterStride<>>;
using mutable_matrix = Eigen::Map<matrix, Eigen::Unaligned, Eigen::OuterStride<>>;

// Sums run over these lanes, the last ones padded. Eigen would split a longer row by its address:
// another rounding each time. Loops over elements are left to the compiler.
constexpr extent lanes = 16;
using chunk = Eigen::Array<float, lanes, 1>;

[[gnu::always_inline]] inline chunk load(const float* data, extent count, float padding = 0.0f) {
    if (count >= lanes) return Eigen::Map<const chunk>(data);
    chunk out = chunk::Constant(padding);
    for (extent i = 0; i < count; ++i) out[i] = data[i];
    return out;
}

[[gnu::always_inline]] inline void store(const chunk& value, float* data, extent count) {
    if (count >= lanes) {
        Eigen::Map<chunk>{data} = value;
    } else {
        for (extent i = 0; i < count; ++i) data[i] = value[i];
    }
}

// Calls f(first element, elements that are left) for every chunk of a row.
template <class F>
void for_chunks(extent width, const F& f) {
    for (extent i = 0; i < width; i += lanes) f(i, width - i);
}

// a * b + c, rounded once where the processor can do that.
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// exp(x) to 2 units in the last place, written so that loops over it vectorise; x is clamped to the
// range of results that are normal numbers, NaN stays NaN. After Cephes' expf.
inline float exponential(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: the sum's low bits hold the integer
    const float shifted = fused(x, 1.44269504f, to_integer);
    const float n = shifted - to_integer;
    const float f = fused(n, 2.12194440e-4f, fused(n, -0.693359375f, x));
    float p = 1.9875691500e-4f;
    p = fused(p, f, 1.3981999507e-3f);
    p = fused(p, f, 8.3334519073e-3f);
    p = fused(p, f, 4.1665795894e-2f);
    p = fused(p, f, 1.6666665459e-1f);
    p = fused(p, f, 5.0000001201e-1f);
    p = fused(p, f * f, f) + 1.0f;
    const unsigned power = (__builtin_bit_cast(unsigned, shifted) << 23) + 0x3f800000u;
    return p * __builtin_bit_cast(float, power);
}

const_matrix matrix_at(const float* data, extent rows, extent columns, extent stride) {
    return {data, rows, columns, Eigen::OuterStride<>(stride)};
}
mutable_matrix matrix_at(float* data, extent rows, extent columns, extent stride) {
    return {data, rows, columns, Eigen::OuterStride<>(stride)};
}

void linear(const float* x, extent rows, extent in, const float* weight, const float* bias,
            extent out, float* y) {
    for (extent i = 0; i < rows; ++i) {
        for (extent j = 0; j < out; ++j) y[i * out + j] = bias[j];
    }
    matrix_at(y, rows, out, out).noalias() +=
        matrix_at(x, rows, in, in) * matrix_at(weight, in, out, out);
}

void layer_norm(const float* x, extent rows, extent width, float eps, const float* multiply,
                const float* add, float* y) {
    const float inverse_width = 1.0f / static_cast<float>(width);
    for (extent row = 0; row < rows; ++row, x += width, y += width) {
        chunk sum = chunk::Zero();
        for_chunks(width, [&](extent i, extent left) { sum += load(x + i, left); });
        const float mean = sum.sum() * inverse_width;
        chunk squares = chunk::Zero();
        for_chunks(width, [&](extent i, extent left) {
            squares += (load(x + i, left, mean) - mean).square();
        });
        const float variance = squares.sum() * inverse_width;
        const float factor = 1.0f / Eigen::numext::sqrt(variance + eps);
        for_chunks(width, [&](extent i, extent left) {
            const chunk normal = (load(x + i, left) - mean) * factor;
            store(normal * load(multiply + i, left) + load(add + i, left), y + i, left);
        });
    }
}

void rms_norm(const float* x, extent rows, extent width, float eps, const float* weight, float* y) {
    for (extent row = 0; row < rows; ++row, x += width, y += width) {
        chunk squares = chunk::Zero();
        for_chunks(width, [&](extent i, extent left) { squares += load(x + i, left).square(); });
        const float mean = squares.sum() / static_cast<float>(width);
        const float factor = 1.0f / Eigen::numext::sqrt(mean + eps);
        for_chunks(width, [&](extent i, extent left) {
            store(load(x + i, left) * factor * load(weight + i, left), y + i, left);
        });
    }
}

void rotate(float* row, extent heads, extent head_dim, const float* cosine, const float* sine) {
    for (extent head = 0; head < heads; ++head, row += head_dim) {
        for (extent i = 0; i < head_dim / 2; ++i) {
            const float even = row[2 * i];
            const float odd = row[2 * i + 1];
            row[2 * i] = even * cosine[i] - odd * sine[i];
            row[2 * i + 1] = even * sine[i] + odd * cosine[i];
        }
    }
}

// x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u))
void gelu(float* x, extent count) {
    constexpr float minus_two_root = -1.5957691216057308f;
    for (extent i = 0; i < count; ++i) {
        const float inner = minus_two_root * x[i] * (1.0f + 0.044715f * x[i] * x[i]);
        x[i] /= 1.0f + exponential(inner);
    }
}

void silu(float* x, extent count) {
    for (extent i = 0; i < count; ++i) x[i] /= 1.0f + exponential(-x[i]);
}

void add_gated(float* x, const float* y, const float* gate, extent rows, extent width) {
    for (extent row = 0; row < rows; ++row, x += width, y += width) {
        if (gate) {
            for (extent i = 0; i < width; ++i) x[i] += y[i] * gate[i];
        } else {
            for (extent i = 0; i < width; ++i) x[i] += y[i];
        }
    }
}

// Turns scores into exp(score - largest); `largest` starts from that of the keys before. Gives the
// sum of the exponentials.
float exponentiate(float* scores, extent count, float& largest) {
    chunk peaks = chunk::Constant(largest);
    for_chunks(count,
               [&](extent i, extent left) { peaks = peaks.max(load(scores + i, left, largest)); });
    largest = peaks.maxCoeff();
    const float shift = largest;
    for (extent i = 0; i < count; ++i) scores[i] = exponential(scores[i] - shift);
    chunk sum = chunk::Zero();
    for_chunks(count, [&](extent i, extent left) { sum += load(scores + i, left); });
    return sum.sum();
}

// Online softmax: only `row_block` x `key_block` scores exist at a time.
void attend(const attention_tile& tile) {
    const extent rows = tile.queries;
    const extent dim = tile.head_dim;
    float* const scaled = tile.scratch;
    float* const sums = scaled + row_block * dim;
    float* const scores = sums + row_block * dim;
    float* const largest = scores + row_block * key_block;
    float* const total = largest + row_block;
    for (extent i = 0; i < rows; ++i) {
        for (extent j = 0; j < dim; ++j) {
            scaled[i * dim + j] = tile.q[i * tile.q_stride + j] * tile.scale;
            sums[i * dim + j] = 0.0f;
        }
        largest[i] = -1.0e30f;
        total[i] = 0.0f;
    }
    const auto q = matrix_at(const_cast<const float*>(scaled), rows, dim, dim);
    auto out = matrix_at(sums, rows, dim, dim);

    for (extent begin = 0; begin < tile.keys; begin += key_block) {
        const extent left = tile.keys - begin;
        const extent count = left < key_block ? left : key_block;
        auto s = matrix_at(scores, rows, count, count);
        s.noalias() =
            q * matrix_at(tile.k + begin * tile.k_stride, count, dim, tile.k_stride).transpose();
        for (extent i = 0; i < rows; ++i) {
            const float before = largest[i];
            const float fresh = exponentiate(scores + i * count, count, largest[i]);
            const float shrink = exponential(before - largest[i]);
            total[i] = total[i] * shrink + fresh;
            for (extent j = 0; j < dim; ++j) sums[i * dim + j] *= shrink;
        }
        out.noalias() += s * matrix_at(tile.v + begin * tile.v_stride, count, dim, tile.v_stride);
    }
    for (extent i = 0; i < rows; ++i) {
        const float factor = tile.keys > 0 ? 1.0f / total[i] : 0.0f;
        for (extent j = 0; j < dim; ++j) {
            tile.out[i * tile.out_stride + j] = sums[i * dim + j] * factor;
        }
        if (tile.lse) {
            tile.lse[i * tile.lse_stride] =
                tile.keys > 0 ? largest[i] + Eigen::numext::log(total[i]) : -HUGE_VALF;
        }
    }
}

}  // namespace

const kernel_table& WAN_KERNELS();
const kernel_table& WAN_KERNELS() {
    // Eigen splits its products by the caches that it finds; fixed sizes make the result a property
    // of the kernels alone.
    Eigen::setCpuCacheSizes(32 << 10, 512 << 10, 4 << 20);
    static const kernel_table table{
        WAN_KERNELS_NAME, linear, layer_norm, rms_norm, rotate, gelu, silu, add_gated, attend};
    return table;
}

}  // namespace wan

// SPDX-License-Identifier: Apache-2.0
// Attention in float32: blocks of queries over tiles of keys with an online softmax.
//
// One block of threads has one head of one block of queries and goes over the keys, tile by tile
// from the first on, so that nothing else in the call changes its result: plain arithmetic on tiles
// in shared memory.
#include <cmath>
#include <wan/cuda/attention.cuh>

namespace wan::cuda {
namespace {

constexpr int key_tile = 64;
constexpr int plain_queries = 64;
constexpr int plain_threads = 256;  // 16 x 16, of 4 x 4 scores each
constexpr int score_stride = key_tile + 4;

constexpr int plain_stride(int dim) {
    return dim + 4;  // so that eight rows lie in different banks
}
constexpr std::size_t plain_bytes(int dim) {
    return sizeof(float) * static_cast<std::size_t>((plain_queries + key_tile) * plain_stride(dim) +
                                                    plain_queries * score_stride);
}

// Rows [first, first + 64) of one head, the rest of tile and rows 0.
template <int Dim>
__device__ void load_plain(const float* from, index_t token, index_t first, index_t count,
                           int head_dim, float scale, float* to) {
    for (int i = static_cast<int>(threadIdx.x); i < 64 * Dim; i += plain_threads) {
        const int row = i / Dim;
        const int column = i % Dim;
        const bool inside = first + row < count && column < head_dim;
        to[row * plain_stride(Dim) + column] =
            inside ? from[(first + row) * token + column] * scale : 0.0f;
    }
}

// The largest, or the sum, over the 16 threads of a row.
template <bool IsSum>
__device__ float over_row(float value) {
    for (int step = 8; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, value, step);
        value = IsSum ? value + other : fmaxf(value, other);
    }
    return value;
}

template <int Dim>
__global__ void __launch_bounds__(plain_threads)
    plain_kernel(const __grid_constant__ attention_task task) {
    extern __shared__ float4 memory[];
    constexpr int stride = plain_stride(Dim);
    constexpr int columns = Dim / 16;
    float* const queries = reinterpret_cast<float*>(memory);
    float* const tile = queries + plain_queries * stride;  // of keys, then of values
    float* const weights = tile + key_tile * stride;

    const index_t head = blockIdx.y;
    const index_t first = index_t{blockIdx.x} * plain_queries;
    const int head_dim = static_cast<int>(task.head_dim);
    const float* const q = static_cast<const float*>(task.q) + head * task.q_head;
    const float* const k = static_cast<const float*>(task.k) + head / task.group * task.k_head;
    const float* const v = static_cast<const float*>(task.v) + head / task.group * task.v_head;
    const int x = static_cast<int>(threadIdx.x) % 16;
    const int y = static_cast<int>(threadIdx.x) / 16;

    load_plain<Dim>(q, task.q_token, first, task.queries, head_dim, task.scale, queries);
    float sums[4][columns] = {};
    float largest[4];
    float total[4] = {};
    for (float& one : largest) one = lowest;

    for (index_t begin = 0; begin < task.keys; begin += key_tile) {
        load_plain<Dim>(k, task.k_token, begin, task.keys, head_dim, 1.0f, tile);
        __syncthreads();
        float scores[4][4] = {};
#pragma unroll 4
        for (int d = 0; d < Dim; d += 4) {
            float4 a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[i] = *reinterpret_cast<const float4*>(queries + (4 * y + i) * stride + d);
                b[i] = *reinterpret_cast<const float4*>(tile + (x + 16 * i) * stride + d);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    scores[i][j] += a[i].x * b[j].x;
                    scores[i][j] += a[i].y * b[j].y;
                    scores[i][j] += a[i].z * b[j].z;
                    scores[i][j] += a[i].w * b[j].w;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float peak = largest[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (begin + x + 16 * j < task.keys) peak = fmaxf(peak, scores[i][j]);
            }
            peak = over_row<false>(peak);
            const float shrink = expf(largest[i] - peak);
            largest[i] = peak;
            float fresh = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const bool inside = begin + x + 16 * j < task.keys;
                const float weight = inside ? expf(scores[i][j] - peak) : 0.0f;
                weights[(4 * y + i) * score_stride + x + 16 * j] = weight;
                fresh += weight;
            }
            total[i] = total[i] * shrink + over_row<true>(fresh);
#pragma unroll
            for (int c = 0; c < columns; ++c) sums[i][c] *= shrink;
        }
        __syncthreads();  // the keys were read
        load_plain<Dim>(v, task.v_token, begin, task.keys, head_dim, 1.0f, tile);
        __syncthreads();
#pragma unroll 2
        for (int j = 0; j < key_tile; j += 4) {
            float4 a[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[i] = *reinterpret_cast<const float4*>(weights + (4 * y + i) * score_stride + j);
            }
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                float b[4];
#pragma unroll
                for (int l = 0; l < 4; ++l) b[l] = tile[(j + l) * stride + x + 16 * c];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[i][c] += a[i].x * b[0];
                    sums[i][c] += a[i].y * b[1];
                    sums[i][c] += a[i].z * b[2];
                    sums[i][c] += a[i].w * b[3];
                }
            }
        }
        __syncthreads();  // the values were read
    }

    float* const out = static_cast<float*>(task.out) + head * task.out_head;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const index_t row = first + 4 * y + i;
        if (row >= task.queries) continue;
        const float factor = task.keys > 0 ? 1.0f / total[i] : 0.0f;
#pragma unroll
        for (int c = 0; c < columns; ++c) {
            const int column = x + 16 * c;
            if (column < head_dim) out[row * task.out_token + column] = sums[i][c] * factor;
        }
        if (task.lse && x == 0) {
            task.lse[row * task.lse_token + head * task.lse_head] =
                task.keys > 0 ? largest[i] + logf(total[i]) : -INFINITY;
        }
    }
}

}  // namespace

void attend_plain(const attention_task& task, latpar::stream_ref stream) {
    with_padded_head(task.head_dim, [&]<int Dim>() {
        launch(plain_kernel<Dim>, task, plain_queries, plain_threads, plain_bytes(Dim), stream);
    });
}

}  // namespace wan::cuda

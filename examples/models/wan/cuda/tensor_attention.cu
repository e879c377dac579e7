// SPDX-License-Identifier: Apache-2.0
// Attention in bfloat16: blocks of queries over tiles of keys with an online softmax.
//
// As in float32 a block of threads goes over the keys, tile by tile from the first on, but its
// warps multiply on tensor cores, after FlashAttention-2 (arXiv 2307.08691).
#include <cmath>
#include <cstdint>
#include <wan/cuda/attention.cuh>

namespace wan::cuda {
namespace {

constexpr int key_tile = 64;
constexpr int tensor_warps = 4;
constexpr int tensor_threads = 32 * tensor_warps;
constexpr int row_tiles = 2;  // of 16 queries, for each warp
constexpr int tensor_queries = 16 * row_tiles * tensor_warps;

constexpr int tensor_stride(int dim) {
    return dim + 8;  // an odd number of 16 bytes: eight rows lie in different banks
}
constexpr std::size_t tensor_bytes(int dim) {
    return sizeof(__nv_bfloat16) *
           static_cast<std::size_t>((tensor_queries + 2 * key_tile) * tensor_stride(dim));
}

// 16 bytes from device to shared memory, zeros if they are not inside; they have landed after
// wait_for_copies().
__device__ void copy_async(__nv_bfloat16* to, const __nv_bfloat16* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)),
                 "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}
__device__ void wait_for_copies() {
    asm volatile("cp.async.wait_all;\n" ::: "memory");
}

// Four 8 x 8 matrices from shared memory; each lane gives the address of a row.
__device__ void load_matrices(std::uint32_t (&to)[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ void load_transposed(std::uint32_t (&to)[4], const __nv_bfloat16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sums [16, 8] += a [16, 16] * b [16, 8]
__device__ void multiply(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rows [first, first + Rows) of one head, the rest of tile and rows 0.
template <int Dim, int Rows, bool IsAligned>
__device__ void load_tile(const __nv_bfloat16* from, index_t token, index_t first, index_t count,
                          int head_dim, __nv_bfloat16* to) {
    constexpr int stride = tensor_stride(Dim);
    if constexpr (IsAligned) {
        constexpr int pieces = Dim / 8;
#pragma unroll
        for (int step = 0; step < (Rows * pieces + tensor_threads - 1) / tensor_threads; ++step) {
            const int i = step * tensor_threads + static_cast<int>(threadIdx.x);
            if (Rows * pieces % tensor_threads != 0 && i >= Rows * pieces) break;
            const int row = i / pieces;
            const int column = i % pieces * 8;
            const bool inside = first + row < count && column < head_dim;
            copy_async(to + row * stride + column,
                       inside ? from + (first + row) * token + column : from, inside);
        }
    } else {
        for (int i = static_cast<int>(threadIdx.x); i < Rows * Dim; i += tensor_threads) {
            const int row = i / Dim;
            const int column = i % Dim;
            const bool inside = first + row < count && column < head_dim;
            to[row * stride + column] =
                inside ? from[(first + row) * token + column] : __float2bfloat16_rn(0.0f);
        }
    }
}

template <int Dim, bool IsAligned>
__global__ void __launch_bounds__(tensor_threads)
    tensor_kernel(const __grid_constant__ attention_task task) {
    extern __shared__ float4 memory[];
    constexpr int stride = tensor_stride(Dim);
    auto* const queries = reinterpret_cast<__nv_bfloat16*>(memory);
    __nv_bfloat16* const keys = queries + tensor_queries * stride;
    __nv_bfloat16* const values = keys + key_tile * stride;

    const index_t head = blockIdx.y;
    const index_t first = index_t{blockIdx.x} * tensor_queries;
    const int head_dim = static_cast<int>(task.head_dim);
    using number = __nv_bfloat16;
    const auto* const q = static_cast<const number*>(task.q) + head * task.q_head;
    const auto* const k = static_cast<const number*>(task.k) + head / task.group * task.k_head;
    const auto* const v = static_cast<const number*>(task.v) + head / task.group * task.v_head;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * row_tiles;
    // Of exponentials of two.
    const float scale = task.scale * 1.44269504f;

    const number* const query_row = queries + (warp_row + lane % 16) * stride + lane / 16 * 8;
    const number* const key_row = keys + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
    const number* const value_row = values + lane % 16 * stride + lane / 16 * 8;

    // A lane has rows lane / 4 and that + 8 of each 16, columns lane % 4 * 2 and + 1 of each 8.
    float sums[row_tiles][Dim / 8][4] = {};
    float largest[row_tiles][2];
    float total[row_tiles][2] = {};
    for (auto& rows : largest) rows[0] = rows[1] = lowest;

    if (task.keys > 0) {
        load_tile<Dim, tensor_queries, IsAligned>(q, task.q_token, first, task.queries, head_dim,
                                                  queries);
        load_tile<Dim, key_tile, IsAligned>(k, task.k_token, 0, task.keys, head_dim, keys);
    }
    for (index_t begin = 0; begin < task.keys; begin += key_tile) {
        wait_for_copies();
        __syncthreads();  // the keys are there, the values before were read
        load_tile<Dim, key_tile, IsAligned>(v, task.v_token, begin, task.keys, head_dim, values);

        float scores[row_tiles][key_tile / 8][4] = {};
#pragma unroll
        for (int d = 0; d < Dim; d += 16) {
            std::uint32_t a[row_tiles][4];
#pragma unroll
            for (int r = 0; r < row_tiles; ++r) {
                load_matrices(a[r], query_row + 16 * r * stride + d);
            }
#pragma unroll
            for (int n = 0; n < key_tile / 8; n += 2) {
                std::uint32_t b[4];
                load_matrices(b, key_row + 8 * n * stride + d);
#pragma unroll
                for (int r = 0; r < row_tiles; ++r) {
                    multiply(scores[r][n], a[r], b[0], b[1]);
                    multiply(scores[r][n + 1], a[r], b[2], b[3]);
                }
            }
        }
        if (begin + key_tile > task.keys) {
            const int left = static_cast<int>(task.keys - begin);
#pragma unroll
            for (int n = 0; n < key_tile / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (8 * n + lane % 4 * 2 + i % 2 < left) continue;
#pragma unroll
                    for (int r = 0; r < row_tiles; ++r) scores[r][n][i] = -INFINITY;
                }
            }
        }
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float peak = largest[r][half];
#pragma unroll
                for (int n = 0; n < key_tile / 8; ++n) {
                    peak = fmaxf(peak, fmaxf(scores[r][n][2 * half], scores[r][n][2 * half + 1]));
                }
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
                const float shrink = power_of_two((largest[r][half] - peak) * scale);
                largest[r][half] = peak;
                const float shift = -peak * scale;
                float fresh = 0;
#pragma unroll
                for (int n = 0; n < key_tile / 8; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[r][n][i] = power_of_two(fmaf(scores[r][n][i], scale, shift));
                        fresh += scores[r][n][i];
                    }
                }
                total[r][half] = total[r][half] * shrink + fresh;
#pragma unroll
                for (int c = 0; c < Dim / 8; ++c) {
                    sums[r][c][2 * half] *= shrink;
                    sums[r][c][2 * half + 1] *= shrink;
                }
            }
        }
        wait_for_copies();
        __syncthreads();  // the values are there, the keys were read
        if (begin + key_tile < task.keys) {
            load_tile<Dim, key_tile, IsAligned>(k, task.k_token, begin + key_tile, task.keys,
                                                head_dim, keys);
        }
#pragma unroll
        for (int n = 0; n < key_tile / 8; n += 2) {
            std::uint32_t a[row_tiles][4];
#pragma unroll
            for (int r = 0; r < row_tiles; ++r) {
                const auto& s = scores[r];
                a[r][0] = pack(s[n][0], s[n][1]);
                a[r][1] = pack(s[n][2], s[n][3]);
                a[r][2] = pack(s[n + 1][0], s[n + 1][1]);
                a[r][3] = pack(s[n + 1][2], s[n + 1][3]);
            }
#pragma unroll
            for (int c = 0; c < Dim / 8; c += 2) {
                std::uint32_t b[4];
                load_transposed(b, value_row + 8 * n * stride + 8 * c);
#pragma unroll
                for (int r = 0; r < row_tiles; ++r) {
                    multiply(sums[r][c], a[r], b[0], b[1]);
                    multiply(sums[r][c + 1], a[r], b[2], b[3]);
                }
            }
        }
    }

    auto* const out = static_cast<number*>(task.out) + head * task.out_head;
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = total[r][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            const index_t row = first + warp_row + 16 * r + 8 * half + lane / 4;
            if (row >= task.queries) continue;
            const float factor = task.keys > 0 ? 1.0f / sum : 0.0f;
#pragma unroll
            for (int c = 0; c < Dim / 8; ++c) {
                const int column = 8 * c + lane % 4 * 2;
                if (column >= head_dim) continue;
                number* const to = out + row * task.out_token + column;
                const float low = sums[r][c][2 * half] * factor;
                const float high = sums[r][c][2 * half + 1] * factor;
                if constexpr (IsAligned) {
                    *reinterpret_cast<std::uint32_t*>(to) = pack(low, high);
                } else {
                    to[0] = __float2bfloat16_rn(low);
                    if (column + 1 < head_dim) to[1] = __float2bfloat16_rn(high);
                }
            }
            if (task.lse && lane % 4 == 0) {
                task.lse[row * task.lse_token + head * task.lse_head] =
                    task.keys > 0 ? largest[r][half] * task.scale + logf(sum) : -INFINITY;
            }
        }
    }
}

}  // namespace

void attend_tensor(const attention_task& task, bool is_aligned, latpar::stream_ref stream) {
    with_padded_head(task.head_dim, [&]<int Dim>() {
        launch(is_aligned ? tensor_kernel<Dim, true> : tensor_kernel<Dim, false>, task,
               tensor_queries, tensor_threads, tensor_bytes(Dim), stream);
    });
}

}  // namespace wan::cuda

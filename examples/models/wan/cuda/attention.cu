// SPDX-License-Identifier: Apache-2.0
// Attention on a GPU: blocks of queries over tiles of keys with an online softmax.
//
// One block of threads has one head of one block of queries and goes over the keys, tile by tile
// from the first on, so that nothing else in the call changes its result. In float32 it is plain
// arithmetic on tiles in shared memory; in bfloat16 warps multiply on tensor cores, after
// FlashAttention-2 (arXiv 2307.08691).
#include <wan/cuda/check.hpp>
#include <wan/cuda/hopper_attention.hpp>
#include <wan/cuda/kernels.hpp>

#include <cmath>
#include <cstdint>
#include <wan/cuda/numbers.cuh>

namespace wan::cuda {
namespace {

constexpr int key_tile = 64;
constexpr float lowest = -1.0e30f;

// In float32.

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

// In bfloat16.

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

__device__ std::uint32_t shared_address(const void* memory) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
}

// 16 bytes from device to shared memory, zeros if they are not inside; has landed after wait().
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

__device__ std::uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&both);
}

__device__ float power_of_two(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(out) : "f"(x));
    return out;
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

// Launches.

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

#if defined(WAN_CUDA_HOPPER)
bool is_hopper() {
    int device = 0;
    int major = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "asking for the compute capability");
    return major == 9;
}
#endif

template <int Dim>
void attend_padded(const attention_task& task, latpar::stream_ref stream) {
    if (task.type == latpar::dtype::f32) {
        launch(plain_kernel<Dim>, task, plain_queries, plain_threads, plain_bytes(Dim), stream);
        return;
    }
    bool is_aligned = task.head_dim % 8 == 0;
    for (const void* data : {task.q, task.k, task.v, static_cast<const void*>(task.out)}) {
        is_aligned = is_aligned && reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
    }
    for (const index_t stride : {task.q_token, task.q_head, task.k_token, task.k_head, task.v_token,
                                 task.v_head, task.out_token, task.out_head}) {
        is_aligned = is_aligned && stride % 8 == 0;
    }
#if defined(WAN_CUDA_HOPPER)
    if (is_aligned && Dim >= 48 && task.keys > 0 && !task.is_common && is_hopper()) {
        attend_hopper(task, stream);
        return;
    }
#endif
    if (is_aligned) {
        launch(tensor_kernel<Dim, true>, task, tensor_queries, tensor_threads, tensor_bytes(Dim),
               stream);
    } else {
        launch(tensor_kernel<Dim, false>, task, tensor_queries, tensor_threads, tensor_bytes(Dim),
               stream);
    }
}

}  // namespace

void attend(const attention_task& task, latpar::stream_ref stream) {
    if (task.queries == 0 || task.heads == 0) return;
    latpar::detail::require(task.heads <= 65535, "attention over ", task.heads,
                            " heads was asked for; a launch has up to 65535");
    if (task.head_dim <= 16) {
        attend_padded<16>(task, stream);
    } else if (task.head_dim <= 32) {
        attend_padded<32>(task, stream);
    } else if (task.head_dim <= 48) {
        attend_padded<48>(task, stream);
    } else if (task.head_dim <= 64) {
        attend_padded<64>(task, stream);
    } else if (task.head_dim <= 96) {
        attend_padded<96>(task, stream);
    } else {
        attend_padded<128>(task, stream);
    }
    check(cudaGetLastError(), "attention");
}

}  // namespace wan::cuda

// SPDX-License-Identifier: Apache-2.0
// Attention in bfloat16 with what Hopper alone has: products by groups of four warps, and tiles
// that a thread of its own copies.
//
// Two groups of warps have 64 queries each; while one multiplies the other takes exponentials, and
// the scores of a tile are multiplied while the weights of the tile before meet their values. After
// FlashAttention-3 (arXiv 2407.08608). Compiled for sm_90a alone.
#include <cuda.h>

#include <cmath>
#include <cstdint>
#include <wan/cuda/attention.cuh>

namespace wan::cuda {
namespace {

constexpr int groups = 2;  // of four warps that multiply; one more copies
constexpr int threads = 128 * (groups + 1);
constexpr int queries_of_block = 64 * groups;
constexpr int key_tile = 128;
constexpr int stages = 2;
constexpr int panel = 64;  // columns of 128 bytes: what one swizzle covers
constexpr int panel_bytes = key_tile * panel * 2;

static_assert(queries_of_block == key_tile);

constexpr int tile_bytes(int dim) {
    return dim / panel * panel_bytes;
}
// Queries, and keys and values of each stage, behind what aligns them.
constexpr std::size_t shared_bytes(int dim) {
    return 1024 + static_cast<std::size_t>((1 + 2 * stages) * tile_bytes(dim));
}

// Barriers in shared memory.

__device__ void init_barrier(std::uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}
__device__ void expect_bytes(std::uint64_t* barrier, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}
__device__ void arrive(std::uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier))
                 : "memory");
}
__device__ void wait_for(std::uint64_t* barrier, int parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// A tile of one head by the copy engine; what lies beyond the tensor is 0.
template <int Dim>
__device__ void copy_tile(const CUtensorMap& map, int head, int first, std::byte* to,
                          std::uint64_t* barrier) {
    expect_bytes(barrier, tile_bytes(Dim));
#pragma unroll
    for (int i = 0; i < Dim / panel; ++i) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(shared_address(to + i * panel_bytes)),
            "l"(&map), "r"(shared_address(barrier)), "r"(i * panel), "r"(head), "r"(first)
            : "memory");
    }
}

// Products by four warps.

// What the multiplier is told of a tile of rows of 128 bytes, swizzled: where it begins, the
// distance between panels (for one by rows), and between groups of eight rows.
__device__ std::uint64_t describe(const std::byte* tile) {
    const auto address = static_cast<std::uint64_t>(shared_address(tile));
    return (address & 0x3ffff) >> 4 | std::uint64_t{panel_bytes >> 4} << 16 |
           std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

__device__ void begin_products() {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until no more than `Left` are under way; `sums` are those of the ones that are done.
template <int Left, int Count>
__device__ void wait_for_products(float (&sums)[Count]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Left) : "memory");
    // What is computed with them stays behind the wait.
#pragma unroll
    for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// clang-format off
// sums [64, 128] = a [64, 16] * b [16, 128], both in shared memory, b by columns; added if `keep`.
__device__ void multiply_shared(float (&d)[64], std::uint64_t a, std::uint64_t b, int keep) {
    asm volatile(
        "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, keep, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
          "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
          "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(keep));
}
// sums [64, 128] += a [64, 16] * b [16, 128], a in registers, b in shared memory by rows.
__device__ void multiply_registers(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
          "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
          "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// sums [64, 64] += a [64, 16] * b [16, 64], a in registers, b in shared memory by rows.
__device__ void multiply_registers(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
          "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
          "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// clang-format on

// scores [64, 128] = queries [64, Dim] * keys [128, Dim]^T
template <int Dim>
__device__ void multiply_keys(float (&scores)[64], const std::byte* queries,
                              const std::byte* keys) {
    const std::uint64_t a = describe(queries);
    const std::uint64_t b = describe(keys);
#pragma unroll
    for (int d = 0; d < Dim; d += 16) {
        const std::uint64_t skip = (d / panel * panel_bytes + d % panel * 2) >> 4;
        multiply_shared(scores, a + skip, b + skip, d > 0);
    }
}
// sums [64, Dim] += weights [64, 128] * values [128, Dim]
template <int Dim>
__device__ void multiply_values(float (&sums)[Dim / 2],
                                const std::uint32_t (&weights)[key_tile / 16][4],
                                const std::byte* values) {
    const std::uint64_t b = describe(values);
#pragma unroll
    for (int i = 0; i < key_tile / 16; ++i) {
        multiply_registers(sums, weights[i], b + i * (16 * 128 >> 4));
    }
}

// A thread has rows lane / 4 and that + 8 of its warp's 16, columns lane % 4 * 2 and + 1 of each 8.
struct row_state {
    float largest[2] = {lowest, lowest};
    float total[2] = {0, 0};

    // Scores become weights; what is to become of the sums so far.
    __device__ void weigh(float (&scores)[64], float scale, float (&shrink)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float peak = largest[half];
#pragma unroll
            for (int n = 0; n < 16; ++n) {
                peak = fmaxf(peak, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
            }
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
            shrink[half] = power_of_two((largest[half] - peak) * scale);
            largest[half] = peak;
            const float shift = -peak * scale;
            float fresh = 0;
#pragma unroll
            for (int n = 0; n < 16; ++n) {
#pragma unroll
                for (int i = 4 * n + 2 * half; i < 4 * n + 2 * half + 2; ++i) {
                    scores[i] = power_of_two(fmaf(scores[i], scale, shift));
                    fresh += scores[i];
                }
            }
            total[half] = total[half] * shrink[half] + fresh;
        }
    }
};

__device__ void mask(float (&scores)[64], int left) {
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
        if (8 * (i / 4) + column + i % 2 >= left) scores[i] = -INFINITY;
    }
}

__device__ void pack_weights(const float (&scores)[64], std::uint32_t (&to)[key_tile / 16][4]) {
#pragma unroll
    for (int i = 0; i < key_tile / 16; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            to[i][j] = pack(scores[8 * i + 2 * j], scores[8 * i + 2 * j + 1]);
    }
}

// The groups of warps multiply in turn.
__device__ void wait_for_turn(int group) {
    asm volatile("bar.sync %0, 256;\n" ::"r"(group + 1) : "memory");
}
__device__ void give_turn(int group) {
    asm volatile("bar.arrive %0, 256;\n" ::"r"(group + 1) : "memory");
}

template <int Dim>
__global__ void __launch_bounds__(threads, 1)
    hopper_kernel(const __grid_constant__ CUtensorMap q_map,
                  const __grid_constant__ CUtensorMap k_map,
                  const __grid_constant__ CUtensorMap v_map,
                  const __grid_constant__ attention_task task) {
    extern __shared__ std::byte memory[];
    __shared__ std::uint64_t query_there, keys_there[stages], keys_read[stages],
        values_there[stages], values_read[stages];
    std::byte* const queries = memory + (1024 - shared_address(memory) % 1024) % 1024;
    std::byte* const keys = queries + tile_bytes(Dim);
    std::byte* const values = keys + stages * tile_bytes(Dim);

    const int head = static_cast<int>(blockIdx.y);
    const int first = static_cast<int>(blockIdx.x) * queries_of_block;
    const int tiles = static_cast<int>((task.keys + key_tile - 1) / key_tile);
    if (threadIdx.x == 0) {
        init_barrier(&query_there, 1);
        for (int i = 0; i < stages; ++i) {
            init_barrier(&keys_there[i], 1);
            init_barrier(&values_there[i], 1);
            init_barrier(&keys_read[i], 4 * groups);
            init_barrier(&values_read[i], 4 * groups);
        }
        asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
    }
    __syncthreads();

    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;\n");
        if (threadIdx.x > 0) return;
        const int key_head = head / static_cast<int>(task.group);
        // A stage is free again when its tile before was read; before the first it is.
        const auto copy = [&](const CUtensorMap& map, int tile, std::byte* to, std::uint64_t* there,
                              std::uint64_t* read) {
            const int stage = tile % stages;
            wait_for(&read[stage], tile / stages % 2 ^ 1);
            copy_tile<Dim>(map, key_head, tile * key_tile, to + stage * tile_bytes(Dim),
                           &there[stage]);
        };
        copy_tile<Dim>(q_map, head, first, queries, &query_there);
        copy(k_map, 0, keys, keys_there, keys_read);
        for (int tile = 0; tile < tiles; ++tile) {
            if (tile + 1 < tiles) copy(k_map, tile + 1, keys, keys_there, keys_read);
            copy(v_map, tile, values, values_there, values_read);
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;\n");
    // The same for a warp, so that its branches are not taken for divergent.
    const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0) - 1;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::byte* const own_queries = queries + group * 64 * 128;
    const float scale = task.scale * 1.44269504f;  // of exponentials of two
    const int left = static_cast<int>(task.keys) - (tiles - 1) * key_tile;  // in the last tile
    const auto is_there = [](std::uint64_t* there, int tile) {
        wait_for(&there[tile % stages], tile / stages % 2);
    };
    const auto was_read = [&](std::uint64_t* read, int tile) {
        if (lane == 0) arrive(&read[tile % stages]);
    };

    float scores[64];
    float sums[Dim / 2];
    std::uint32_t weights[key_tile / 16][4];
    float shrink[2];
    row_state state;
#pragma unroll
    for (float& sum : sums) sum = 0;
    if (group == 1) give_turn(0);

    wait_for(&query_there, 0);
    is_there(keys_there, 0);
    begin_products();
    multiply_keys<Dim>(scores, own_queries, keys);
    commit_products();
    wait_for_products<0>(scores);
    was_read(keys_read, 0);
    if (tiles == 1) mask(scores, left);
    state.weigh(scores, scale, shrink);
    pack_weights(scores, weights);

    for (int tile = 1; tile < tiles; ++tile) {
        is_there(keys_there, tile);
        wait_for_turn(group);
        begin_products();
        multiply_keys<Dim>(scores, own_queries, keys + tile % stages * tile_bytes(Dim));
        commit_products();
        is_there(values_there, tile - 1);
        begin_products();
        multiply_values<Dim>(sums, weights, values + (tile - 1) % stages * tile_bytes(Dim));
        commit_products();
        // The last turn of all is nobody's.
        if (group == 0 || tile + 1 < tiles) give_turn(1 - group);
        wait_for_products<1>(scores);
        was_read(keys_read, tile);
        if (tile + 1 == tiles) mask(scores, left);
        state.weigh(scores, scale, shrink);
        wait_for_products<0>(sums);
        was_read(values_read, tile - 1);
#pragma unroll
        for (int i = 0; i < Dim / 2; ++i) sums[i] *= shrink[i / 2 % 2];
        pack_weights(scores, weights);
    }
    if (tiles == 1 && group == 0) wait_for_turn(0);  // that it was given
    is_there(values_there, tiles - 1);
    begin_products();
    multiply_values<Dim>(sums, weights, values + (tiles - 1) % stages * tile_bytes(Dim));
    commit_products();
    wait_for_products<0>(sums);

    auto* const out = static_cast<__nv_bfloat16*>(task.out) + head * task.out_head;
    const int head_dim = static_cast<int>(task.head_dim);
    const int warp_row = static_cast<int>(threadIdx.x) / 32 % 4 * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float sum = state.total[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const index_t row = first + group * 64 + warp_row + 8 * half + lane / 4;
        if (row >= task.queries) continue;
        const float factor = 1.0f / sum;
#pragma unroll
        for (int c = 0; c < Dim / 8; ++c) {
            const int column = 8 * c + lane % 4 * 2;
            if (column >= head_dim) continue;
            *reinterpret_cast<std::uint32_t*>(out + row * task.out_token + column) =
                pack(sums[4 * c + 2 * half] * factor, sums[4 * c + 2 * half + 1] * factor);
        }
        if (task.lse && lane % 4 == 0) {
            task.lse[row * task.lse_token + head * task.lse_head] =
                state.largest[half] * task.scale + logf(sum);
        }
    }
}

// The launch.

using encode_function = decltype(&cuTensorMapEncodeTiled);

encode_function find_encode() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                           cudaEnableDefault, &result),
          "looking for cuTensorMapEncodeTiled");
    latpar::detail::require<latpar::device_error>(
        result == cudaDriverEntryPointSuccess && found,
        "the driver has no cuTensorMapEncodeTiled; one for CUDA 12 is needed");
    return reinterpret_cast<encode_function>(found);
}

// [tokens, heads, head_dim] for the copy engine, in tiles of one head.
CUtensorMap map_of(const void* data, index_t tokens, index_t heads, index_t head_dim, index_t token,
                   index_t head) {
    static const encode_function encode = find_encode();
    CUtensorMap out{};
    const cuuint64_t extents[3] = {static_cast<cuuint64_t>(head_dim),
                                   static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(tokens)};
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(2 * head),
                                   static_cast<cuuint64_t>(2 * token)};
    const cuuint32_t box[3] = {panel, 1, key_tile};
    const cuuint32_t steps[3] = {1, 1, 1};
    const CUresult result =
        encode(&out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), extents, strides,
               box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    latpar::detail::require<latpar::device_error>(result == CUDA_SUCCESS,
                                                  "describing a tensor of attention failed: error ",
                                                  static_cast<int>(result));
    return out;
}

template <int Dim>
void launch_padded(const attention_task& task, latpar::stream_ref stream) {
    const index_t key_heads = task.heads / task.group;
    check(cudaFuncSetAttribute(hopper_kernel<Dim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes(Dim))),
          "taking shared memory for attention");
    const dim3 blocks(
        static_cast<unsigned>((task.queries + queries_of_block - 1) / queries_of_block),
        static_cast<unsigned>(task.heads));
    hopper_kernel<Dim><<<blocks, threads, shared_bytes(Dim), native(stream)>>>(
        map_of(task.q, task.queries, task.heads, task.head_dim, task.q_token, task.q_head),
        map_of(task.k, task.keys, key_heads, task.head_dim, task.k_token, task.k_head),
        map_of(task.v, task.keys, key_heads, task.head_dim, task.v_token, task.v_head), task);
}

}  // namespace

void attend_hopper(const attention_task& task, latpar::stream_ref stream) {
    if (task.head_dim <= 64) {
        launch_padded<64>(task, stream);
    } else {
        launch_padded<128>(task, stream);
    }
}

}  // namespace wan::cuda

// SPDX-License-Identifier: Apache-2.0
// The transformer's arithmetic on a GPU: rows, patches and times.
#include <wan/cuda/check.hpp>
#include <wan/cuda/kernels.hpp>

#include <algorithm>
#include <type_traits>
#include <wan/cuda/numbers.cuh>

namespace wan::cuda {
namespace {

using latpar::dtype;
using latpar::detail::require;

constexpr int row_threads = 128;
constexpr int element_threads = 256;

void check_launch(const char* doing) {
    check(cudaGetLastError(), doing);
}

unsigned blocks_for(index_t items, index_t in_block) {
    const index_t blocks = (items + in_block - 1) / in_block;
    require(blocks <= 2147483647, items, " elements are more than one launch computes");
    return static_cast<unsigned>(blocks);
}

// The sum over a block of `row_threads`, in an order of its own, for all of its threads.
__device__ float block_sum(float value) {
    __shared__ float parts[row_threads / 32];
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float out = 0;
    for (int i = 0; i < row_threads / 32; ++i) out += parts[i];
    __syncthreads();
    return out;
}

template <int Count>
__device__ void load_vector(const token_vector& vector, index_t moved, int i, float (&to)[Count]) {
    load_numbers<Count>(vector.fixed + i, to);
    if (vector.moving) {
        float moving[Count];
        load_numbers<Count>(vector.moving + moved + i, moving);
#pragma unroll
        for (int j = 0; j < Count; ++j) to[j] += moving[j];
    }
}

// One block for each row; `Count` elements at a time.
template <class T, int Count>
__global__ void __launch_bounds__(row_threads)
    update_kernel(const __grid_constant__ row_update task) {
    extern __shared__ float4 memory[];
    float* const kept = reinterpret_cast<float*>(memory);  // each thread reads what it wrote
    const index_t row = blockIdx.x;
    const int width = static_cast<int>(task.width);
    const index_t frame = task.area == 0 ? 0 : (task.first + row) / task.area;
    const index_t moved = frame * task.stride;
    float* const hidden = task.hidden + row * width;
    const T* const change = static_cast<const T*>(task.change) + row * width;
    T* const out = static_cast<T*>(task.out) + row * width;

    float sum = 0;
    for (int i = Count * static_cast<int>(threadIdx.x); i < width; i += Count * row_threads) {
        float x[Count];
        load_numbers<Count>(hidden + i, x);
        if (task.change) {
            float y[Count], bias[Count], gate[Count];
            load_numbers<Count>(change + i, y);
            load_numbers<Count>(task.bias + i, bias);
            if (task.gate.fixed) load_vector<Count>(task.gate, moved, i, gate);
#pragma unroll
            for (int j = 0; j < Count; ++j) {
                const float full = y[j] + bias[j];
                x[j] += task.gate.fixed ? full * gate[j] : full;
            }
            store_numbers<Count>(hidden + i, x);
        }
#pragma unroll
        for (int j = 0; j < Count; ++j) {
            kept[i + j] = x[j];
            sum += x[j];
        }
    }
    if (!task.out) return;
    const float mean = block_sum(sum) / static_cast<float>(width);
    float squares = 0;
    for (int i = Count * static_cast<int>(threadIdx.x); i < width; i += Count * row_threads) {
#pragma unroll
        for (int j = 0; j < Count; ++j) {
            const float distance = kept[i + j] - mean;
            squares += distance * distance;
        }
    }
    const float variance = block_sum(squares) / static_cast<float>(width);
    const float factor = 1.0f / sqrtf(variance + task.eps);
    for (int i = Count * static_cast<int>(threadIdx.x); i < width; i += Count * row_threads) {
        float multiply[Count], add[Count], y[Count];
        load_vector<Count>(task.multiply, moved, i, multiply);
        load_vector<Count>(task.add, moved, i, add);
#pragma unroll
        for (int j = 0; j < Count; ++j) {
            y[j] = (kept[i + j] - mean) * factor * (multiply[j] + task.one) + add[j];
        }
        store_numbers<Count>(out + i, y);
    }
}

// One block for each row; pairs (2i, 2i + 1), which are what turns.
template <class T>
__global__ void __launch_bounds__(row_threads)
    heads_kernel(T* x, int width, int head_dim, const float* bias, const float* weight, float eps,
                 const __grid_constant__ rotation turn) {
    extern __shared__ float4 memory[];
    float* const kept = reinterpret_cast<float*>(memory);
    const index_t row = blockIdx.x;
    x += row * width;
    float squares = 0;
    for (int i = 2 * static_cast<int>(threadIdx.x); i < width; i += 2 * row_threads) {
        float pair[2];
        load_numbers<2>(x + i, pair);
        if (bias) {
            // Rounded to the model's type, as add_bias does: a cache sees the same keys.
            packed_numbers<2, T> rounded;
            store_number(&rounded.values[0], pair[0] + bias[i]);
            store_number(&rounded.values[1], pair[1] + bias[i + 1]);
            pair[0] = load_number(&rounded.values[0]);
            pair[1] = load_number(&rounded.values[1]);
        }
        squares += pair[0] * pair[0] + pair[1] * pair[1];
        kept[i] = pair[0];
        kept[i + 1] = pair[1];
    }
    const float mean = block_sum(squares) / static_cast<float>(width);
    const float factor = 1.0f / sqrtf(mean + eps);

    const bool turns = turn.tables[0] || turn.tables[1] || turn.tables[2];
    const index_t token = turn.first + row;
    const index_t area = turn.grid[1] * turn.grid[2];
    // Rows of the tables.
    const float* rows[3] = {nullptr, nullptr, nullptr};
    if (turns) {
        const index_t at[3] = {token / area, token % area / turn.grid[2], token % turn.grid[2]};
        for (int axis = 0; axis < 3; ++axis) {
            rows[axis] = turn.tables[axis] + 2 * (turn.origin[axis] + at[axis]) * turn.pairs[axis];
        }
    }
    const int first_h = static_cast<int>(turn.pairs[0]);
    const int first_w = first_h + static_cast<int>(turn.pairs[1]);
    for (int i = 2 * static_cast<int>(threadIdx.x); i < width; i += 2 * row_threads) {
        float even = kept[i] * factor * weight[i];
        float odd = kept[i + 1] * factor * weight[i + 1];
        if (turns) {
            const int pair = i % head_dim / 2;
            const float* from = pair < first_h   ? rows[0] + 2 * pair
                                : pair < first_w ? rows[1] + 2 * (pair - first_h)
                                                 : rows[2] + 2 * (pair - first_w);
            const float cosine = from[0];
            const float sine = from[1];
            const float turned = even * cosine - odd * sine;
            odd = even * sine + odd * cosine;
            even = turned;
        }
        const float pair[2] = {even, odd};
        store_numbers<2>(x + i, pair);
    }
}

// x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), as on the host.
template <class T>
__device__ float gelu(float x) {
    constexpr float minus_two_root = -1.5957691216057308f;
    const float inner = minus_two_root * x * (1.0f + 0.044715f * x * x);
    return x / (1.0f + (std::is_same_v<T, float> ? expf(inner) : __expf(inner)));
}

// One block for each row.
template <class T, int Count, bool IsGelu>
__global__ void __launch_bounds__(element_threads) bias_kernel(T* x, int width, const float* bias) {
    x += index_t{blockIdx.x} * width;
    for (int i = Count * static_cast<int>(threadIdx.x); i < width; i += Count * element_threads) {
        float values[Count];
        load_numbers<Count>(x + i, values);
#pragma unroll
        for (int j = 0; j < Count; ++j) {
            values[j] += bias[i + j];
            if (IsGelu) values[j] = gelu<T>(values[j]);
        }
        store_numbers<Count>(x + i, values);
    }
}

template <bool IsGelu>
void bias_rows(void* x, index_t rows, index_t width, dtype type, const float* bias,
               latpar::stream_ref stream) {
    if (rows == 0) return;
    const unsigned blocks = blocks_for(rows, 1);
    const int columns = static_cast<int>(width);
    with_model_type(type, [&]<class T>(T*) {
        T* const data = static_cast<T*>(x);
        constexpr int wide = 16 / sizeof(T);
        if (width % wide == 0) {
            bias_kernel<T, wide, IsGelu>
                <<<blocks, element_threads, 0, native(stream)>>>(data, columns, bias);
        } else {
            bias_kernel<T, 1, IsGelu>
                <<<blocks, element_threads, 0, native(stream)>>>(data, columns, bias);
        }
    });
    check_launch("adding a bias");
}

__global__ void __launch_bounds__(element_threads)
    fill_kernel(float* x, int width, const float* bias) {
    x += index_t{blockIdx.x} * width;
    for (int i = static_cast<int>(threadIdx.x); i < width; i += element_threads) x[i] = bias[i];
}

/// Strides of a latent, and where one sample of it begins.
struct latent_layout {
    index_t channel, t, h, w;
    int patch_t, patch_h, patch_w;
    int grid_h, grid_w;
    int channels;
};

latent_layout layout_of(const std::array<index_t, 5>& extents,
                        const std::array<index_t, 5>& strides, const patch_layout& layout) {
    return {strides[1],
            strides[2],
            strides[3],
            strides[4],
            static_cast<int>(layout.patch[0]),
            static_cast<int>(layout.patch[1]),
            static_cast<int>(layout.patch[2]),
            static_cast<int>(layout.grid[1]),
            static_cast<int>(layout.grid[2]),
            static_cast<int>(extents[1])};
}

__device__ index_t offset_of(const latent_layout& of, index_t token, int position) {
    const index_t area = index_t{of.grid_h} * of.grid_w;
    const index_t t = token / area * of.patch_t + position / (of.patch_h * of.patch_w);
    const index_t h = token % area / of.grid_w * of.patch_h + position / of.patch_w % of.patch_h;
    const index_t w = token % of.grid_w * of.patch_w + position % of.patch_w;
    return t * of.t + h * of.h + w * of.w;
}

// One thread for each element; neighbours are neighbours along W.
template <class From, class T>
__global__ void __launch_bounds__(element_threads)
    gather_kernel(const From* z, const __grid_constant__ latent_layout of, index_t first,
                  index_t rows, T* out, index_t columns) {
    const int volume = of.patch_t * of.patch_h * of.patch_w;
    const index_t i = index_t{blockIdx.x} * element_threads + threadIdx.x;
    const index_t in_channel = rows * volume;
    if (i >= in_channel * of.channels) return;
    const int channel = static_cast<int>(i / in_channel);
    const index_t row = i % in_channel / volume;
    const int position = static_cast<int>(i % volume);
    const float value =
        load_number(z + channel * of.channel + offset_of(of, first + row, position));
    store_number(out + row * columns + channel * volume + position, value);
}

template <class To>
__global__ void __launch_bounds__(element_threads)
    scatter_kernel(const float* patches, const __grid_constant__ latent_layout of, index_t tokens,
                   To* prediction) {
    const int volume = of.patch_t * of.patch_h * of.patch_w;
    const index_t i = index_t{blockIdx.x} * element_threads + threadIdx.x;
    const index_t in_channel = tokens * volume;
    if (i >= in_channel * of.channels) return;
    const int channel = static_cast<int>(i / in_channel);
    const index_t token = i % in_channel / volume;
    const int position = static_cast<int>(i % volume);
    store_number(prediction + channel * of.channel + offset_of(of, token, position),
                 patches[(token * volume + position) * of.channels + channel]);
}

template <class F>
void with_latent_type(dtype type, const F& f) {
    switch (type) {
        case dtype::f32:
            return f(static_cast<float*>(nullptr));
        case dtype::bf16:
            return f(static_cast<__nv_bfloat16*>(nullptr));
        case dtype::f16:
            return f(static_cast<__half*>(nullptr));
        case dtype::f64:
            return f(static_cast<double*>(nullptr));
        default:
            throw latpar::usage_error(latpar::detail::concat(
                "a latent of ", name_of(type), " was passed; use f32, bf16, f16 or f64"));
    }
}

struct value_batch {
    static constexpr int capacity = 256;
    float values[capacity];
};

__global__ void __launch_bounds__(value_batch::capacity)
    store_kernel(const __grid_constant__ value_batch batch, int count, float* out) {
    const int i = static_cast<int>(threadIdx.x);
    if (i < count) out[i] = batch.values[i];
}

// One block for each time.
__global__ void __launch_bounds__(row_threads)
    waves_kernel(const float* times, const float* frequencies, int half, float* out) {
    out += index_t{blockIdx.x} * 2 * half;
    for (int i = static_cast<int>(threadIdx.x); i < half; i += row_threads) {
        const float angle = times[blockIdx.x] * frequencies[i];
        out[i] = cosf(angle);
        out[half + i] = sinf(angle);
    }
}

constexpr int linear_columns = 32;
constexpr int linear_slices = 8;

// One block for 32 columns of a row; each warp has every eighth input.
template <class T>
__global__ void __launch_bounds__(linear_columns* linear_slices)
    small_linear_kernel(const float* x, int in, const T* weight, const float* bias, int out,
                        float* y, bool is_silu) {
    __shared__ float parts[linear_slices][linear_columns];
    const int lane = static_cast<int>(threadIdx.x) % linear_columns;
    const int slice = static_cast<int>(threadIdx.x) / linear_columns;
    const int column = static_cast<int>(blockIdx.x) * linear_columns + lane;
    x += index_t{blockIdx.y} * in;
    float sum = 0;
    if (column < out) {
#pragma unroll 4
        for (int i = slice; i < in; i += linear_slices) {
            float value = x[i];
            if (is_silu) value /= 1.0f + expf(-value);
            sum += value * load_number(weight + index_t{i} * out + column);
        }
    }
    parts[slice][lane] = sum;
    __syncthreads();
    if (slice == 0 && column < out) {
        for (int i = 1; i < linear_slices; ++i) sum += parts[i][lane];
        y[index_t{blockIdx.y} * out + column] = sum + bias[column];
    }
}

template <class T>
__global__ void __launch_bounds__(element_threads)
    random_kernel(T* out, index_t elements, float spread, float centre, std::uint64_t seed) {
    const index_t i = index_t{blockIdx.x} * element_threads + threadIdx.x;
    if (i >= elements) return;
    // SplitMix64.
    std::uint64_t bits =
        (seed * 0xd1342543de82ef95u + static_cast<std::uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    const auto high = static_cast<float>(static_cast<unsigned>((bits ^ (bits >> 31)) >> 40));
    store_number(out + i, spread * (high * 0x1p-23f - 1.0f) + centre);
}

}  // namespace

void update_rows(const row_update& task, latpar::stream_ref stream) {
    if (task.rows == 0) return;
    const unsigned blocks = blocks_for(task.rows, 1);
    const auto bytes = static_cast<std::size_t>(task.width) * sizeof(float);
    require(bytes <= 48 * 1024, "a model of width ", task.width,
            " was to run on a GPU; rows of up to 12288 are computed there");
    with_model_type(task.type, [&]<class T>(T*) {
        if (task.width % 4 == 0) {
            update_kernel<T, 4><<<blocks, row_threads, bytes, native(stream)>>>(task);
        } else {
            update_kernel<T, 1><<<blocks, row_threads, bytes, native(stream)>>>(task);
        }
    });
    check_launch("normalising rows");
}

void normalize_heads(void* x, index_t rows, index_t width, index_t head_dim, dtype type,
                     const float* bias, const float* weight, float eps, const rotation& turn,
                     latpar::stream_ref stream) {
    if (rows == 0) return;
    const auto bytes = static_cast<std::size_t>(width) * sizeof(float);
    with_model_type(type, [&]<class T>(T*) {
        heads_kernel<T><<<blocks_for(rows, 1), row_threads, bytes, native(stream)>>>(
            static_cast<T*>(x), static_cast<int>(width), static_cast<int>(head_dim), bias, weight,
            eps, turn);
    });
    check_launch("normalising heads");
}

void add_bias(void* x, index_t rows, index_t width, dtype type, const float* bias,
              latpar::stream_ref stream) {
    bias_rows<false>(x, rows, width, type, bias, stream);
}

void add_bias_gelu(void* x, index_t rows, index_t width, dtype type, const float* bias,
                   latpar::stream_ref stream) {
    bias_rows<true>(x, rows, width, type, bias, stream);
}

void fill_rows(float* x, index_t rows, index_t width, const float* bias,
               latpar::stream_ref stream) {
    if (rows == 0) return;
    fill_kernel<<<blocks_for(rows, 1), element_threads, 0, native(stream)>>>(
        x, static_cast<int>(width), bias);
    check_launch("filling rows");
}

void gather_patches(latpar::const_latent_view z, index_t sample, const patch_layout& layout,
                    index_t first, index_t rows, void* out, dtype type, index_t columns,
                    index_t column, latpar::stream_ref stream) {
    const latent_layout of = layout_of(z.extents, z.strides, layout);
    const index_t elements = rows * latpar::volume_of(layout.patch) * of.channels;
    with_latent_type(z.type, [&]<class From>(From*) {
        if (elements == 0) return;
        const From* const from = reinterpret_cast<const From*>(z.data) + sample * z.strides[0];
        with_model_type(type, [&]<class T>(T*) {
            gather_kernel<From, T>
                <<<blocks_for(elements, element_threads), element_threads, 0, native(stream)>>>(
                    from, of, first, rows, static_cast<T*>(out) + column, columns);
        });
    });
    check_launch("gathering patches");
}

void scatter_patches(const float* patches, const patch_layout& layout,
                     latpar::latent_view prediction, index_t sample, latpar::stream_ref stream) {
    const latent_layout of = layout_of(prediction.extents, prediction.strides, layout);
    const index_t tokens = latpar::volume_of(layout.grid);
    const index_t elements = tokens * latpar::volume_of(layout.patch) * of.channels;
    with_latent_type(prediction.type, [&]<class To>(To*) {
        scatter_kernel<To>
            <<<blocks_for(elements, element_threads), element_threads, 0, native(stream)>>>(
                patches, of, tokens,
                reinterpret_cast<To*>(prediction.data) + sample * prediction.strides[0]);
    });
    check_launch("scattering patches");
}

void store_values(std::span<const float> values, float* out, latpar::stream_ref stream) {
    constexpr std::size_t capacity = value_batch::capacity;
    for (std::size_t first = 0; first < values.size(); first += capacity) {
        const std::span<const float> part =
            values.subspan(first, std::min(capacity, values.size() - first));
        value_batch batch{};
        std::copy(part.begin(), part.end(), batch.values);
        store_kernel<<<1, value_batch::capacity, 0, native(stream)>>>(
            batch, static_cast<int>(part.size()), out + first);
    }
    check_launch("storing values");
}

void time_waves(const float* times, index_t count, const float* frequencies, index_t half,
                float* out, latpar::stream_ref stream) {
    waves_kernel<<<blocks_for(count, 1), row_threads, 0, native(stream)>>>(
        times, frequencies, static_cast<int>(half), out);
    check_launch("embedding times");
}

void small_linear(const float* x, index_t rows, index_t in, const void* weight, dtype type,
                  const float* bias, index_t out, float* y, bool is_silu,
                  latpar::stream_ref stream) {
    constexpr index_t largest = 65535;
    with_model_type(type, [&]<class T>(T*) {
        for (index_t first = 0; first < rows; first += largest) {
            const dim3 blocks(blocks_for(out, linear_columns),
                              static_cast<unsigned>(std::min(largest, rows - first)));
            small_linear_kernel<T><<<blocks, linear_columns * linear_slices, 0, native(stream)>>>(
                x + first * in, static_cast<int>(in), static_cast<const T*>(weight), bias,
                static_cast<int>(out), y + first * out, is_silu);
        }
    });
    check_launch("embedding times");
}

void fill_random(void* out, index_t elements, dtype type, float spread, float centre,
                 std::uint64_t seed, latpar::stream_ref stream) {
    if (elements == 0) return;
    with_model_type(type, [&]<class T>(T*) {
        random_kernel<T>
            <<<blocks_for(elements, element_threads), element_threads, 0, native(stream)>>>(
                static_cast<T*>(out), elements, spread, centre, seed);
    });
    check_launch("making random numbers");
}

void wait_for_device() {
    check(cudaDeviceSynchronize(), "waiting for the device");
}

}  // namespace wan::cuda

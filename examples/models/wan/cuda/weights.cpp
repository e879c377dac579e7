// SPDX-License-Identifier: Apache-2.0
// The weights of a Wan 2.1 transformer in device memory.
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/stream.hpp>

#include <wan/cuda/kernels.hpp>
#include <wan/cuda/weights.hpp>

#include <algorithm>
#include <cmath>

namespace wan::cuda {
namespace {

using latpar::dtype;
using latpar::detail::require;

constexpr index_t alignment = 256;

// What a tensor is to the model.
enum class part { matrix, bias, scale };

// Calls `linear(layer, in, out)` and `vector(pointer, elements, part)` for all that the layers
// need, of weights of either kind.
template <class Weights, class Linear, class Vector>
void for_each_tensor(Weights& all, const Linear& linear, const Vector& vector) {
    const config& c = all.config;
    const index_t w = c.width();
    if (all.layers.first == 0) linear(all.patch, c.in_channels * c.patch_volume(), w);
    linear(all.time_1, c.freq_dim, w);
    linear(all.time_2, w, w);
    linear(all.time_projection, w, 6 * w);
    linear(all.text_1, c.text_dim, w);
    linear(all.text_2, w, w);
    if (all.layers.last == c.num_layers) {
        vector(all.head_modulation, 2 * w, part::bias);
        linear(all.head, w, c.out_channels * c.patch_volume());
    }
    for (index_t i = all.layers.first; i < all.layers.last; ++i) {
        auto& block = all.blocks[static_cast<std::size_t>(i)];
        for (auto* attention : {&block.self, &block.cross}) {
            for (auto* projection : {&attention->q, &attention->k, &attention->v, &attention->out})
                linear(*projection, w, w);
            vector(attention->norm_q, w, part::scale);
            vector(attention->norm_k, w, part::scale);
        }
        vector(block.norm2_weight, w, part::scale);
        vector(block.norm2_bias, w, part::bias);
        linear(block.ffn_up, w, c.ffn_dim);
        linear(block.ffn_down, c.ffn_dim, w);
        vector(block.modulation, 6 * w, part::bias);
    }
}

index_t aligned(index_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
}

// Without memory yet.
weights shape_of(const wan::config& shape, dtype type, layer_range layers) {
    require(type == dtype::f32 || type == dtype::bf16, "weights of ", name_of(type),
            " were asked for; on a GPU the model computes in f32 or bf16");
    weights out;
    out.config = shape;
    out.type = type;
    out.layers = layers;
    if (out.layers.last < 0) out.layers.last = shape.num_layers;
    require(0 <= out.layers.first && out.layers.first <= out.layers.last &&
                out.layers.last <= shape.num_layers,
            "layers [", layers.first, ", ", layers.last, ") were asked for of a model that has ",
            shape.num_layers);
    out.blocks.resize(static_cast<std::size_t>(shape.num_layers));
    return out;
}

index_t table_elements(const wan::config& shape, std::size_t axis) {
    return 2 * shape.rope_max_seq_len * shape.rotary_pairs()[axis];
}

index_t bytes_of(weights& all) {
    index_t out = 0;
    const auto vector = [&](const float*, index_t elements, part) { out += aligned(4 * elements); };
    for_each_tensor(
        all,
        [&](linear_weights&, index_t from, index_t to) {
            out += aligned(from * to * size_of(all.type));
            vector(nullptr, to, part::bias);
        },
        vector);
    vector(nullptr, all.config.freq_dim / 2, part::bias);
    for (std::size_t axis = 0; axis < 3; ++axis) {
        vector(nullptr, table_elements(all.config, axis), part::bias);
    }
    return out;
}

// Takes the memory and gives each tensor its place; `place(element, elements, type, part, inputs)`
// fills it.
template <class Place>
void lay_out(weights& all, latpar::memory_source memory, const Place& place) {
    require(memory.space == latpar::memory_space::cuda,
            "the weights of a GPU lie in its memory, not in that of the host; pass a source of it");
    all.storage = latpar::buffer(bytes_of(all), memory);
    std::byte* next = all.storage.data();
    const auto vector = [&](const float*& pointer, index_t elements, part what) {
        place(next, elements, dtype::f32, what, index_t{1});
        pointer = reinterpret_cast<const float*>(next);
        next += aligned(4 * elements);
    };
    for_each_tensor(
        all,
        [&](linear_weights& layer, index_t from, index_t to) {
            layer.in = from;
            layer.out = to;
            place(next, from * to, all.type, part::matrix, from);
            layer.weight = next;
            next += aligned(from * to * size_of(all.type));
            vector(layer.bias, to, part::bias);
        },
        vector);
    // As the host computes them, for the same bits.
    const auto upload = [&](const float*& pointer, const std::vector<float>& values) {
        latpar::cuda::copy_bytes(next, values.data(), 4 * std::ssize(values));
        pointer = reinterpret_cast<const float*>(next);
        next += aligned(4 * std::ssize(values));
    };
    const index_t half = all.config.freq_dim / 2;
    std::vector<float> table;
    for (index_t i = 0; i < half; ++i) {
        const float exponent = -std::log(1e4f) * static_cast<float>(i);
        table.push_back(std::exp(exponent / static_cast<float>(half)));
    }
    upload(all.frequencies, table);
    for (std::size_t axis = 0; axis < 3; ++axis) {
        const index_t pairs = all.config.rotary_pairs()[axis];
        table.clear();
        for (index_t position = 0; position < all.config.rope_max_seq_len; ++position) {
            for (index_t pair = 0; pair < pairs; ++pair) {
                const double exponent = static_cast<double>(pair) / static_cast<double>(pairs);
                const double angle = static_cast<double>(position) / std::pow(1e4, exponent);
                table.push_back(static_cast<float>(std::cos(angle)));
                table.push_back(static_cast<float>(std::sin(angle)));
            }
        }
        upload(all.rotary[axis], table);
    }
}

latpar::latent_view row_of(std::byte* data, index_t elements, dtype type) {
    return {data,
            {1, 1, 1, 1, elements},
            {elements, elements, elements, elements, 1},
            type,
            latpar::memory_space::cuda};
}

}  // namespace

std::shared_ptr<const weights> upload_weights(const wan::weights& from, dtype type,
                                              latpar::memory_source memory) {
    auto out = std::make_shared<weights>(shape_of(from.config, type, from.layers));
    std::vector<const float*> sources;
    for_each_tensor(
        from,
        [&](const wan::linear_weights& layer, index_t, index_t) {
            sources.push_back(layer.weight);
            sources.push_back(layer.bias);
        },
        [&](const float* pointer, index_t, part) { sources.push_back(pointer); });

    // What is to be converted passes through this, piece by piece.
    constexpr index_t piece = index_t{16} << 20;
    latpar::buffer staging;
    std::size_t next = 0;
    lay_out(*out, memory, [&](std::byte* to, index_t elements, dtype as, part, index_t) {
        const float* const source = sources[next++];
        if (as == dtype::f32) {
            latpar::cuda::copy_bytes(to, source, 4 * elements);
            return;
        }
        if (staging.bytes() == 0) staging = latpar::buffer(4 * piece, memory);
        for (index_t first = 0; first < elements; first += piece) {
            const index_t count = std::min(piece, elements - first);
            latpar::cuda::copy_bytes(staging.data(), source + first, 4 * count);
            latpar::cuda::kernels{}.copy(row_of(staging.data(), count, dtype::f32),
                                         row_of(to + first * size_of(as), count, as));
        }
    });
    latpar::cuda::synchronize({});
    return out;
}

std::shared_ptr<const weights> random_weights(const wan::config& shape, dtype type,
                                              latpar::memory_source memory, std::uint64_t seed,
                                              layer_range layers) {
    auto out = std::make_shared<weights>(shape_of(shape, type, layers));
    std::uint64_t next = seed << 20;
    lay_out(*out, memory, [&](std::byte* to, index_t elements, dtype as, part what, index_t in) {
        // The same spreads as those of write_random_model.
        const float spread = what == part::matrix ? 1.7f / std::sqrt(static_cast<float>(in)) : 0.2f;
        fill_random(to, elements, as, spread, what == part::scale ? 1.0f : 0.0f, next++, {});
    });
    latpar::cuda::synchronize({});
    return out;
}

index_t weight_bytes(const wan::config& shape, dtype type, layer_range layers) {
    weights nothing = shape_of(shape, type, layers);
    return bytes_of(nothing);
}

}  // namespace wan::cuda

// SPDX-License-Identifier: Apache-2.0
// The weights of a Wan 2.1 transformer in device memory.
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/stream.hpp>

#include <wan/cuda/kernels.hpp>
#include <wan/cuda/weights.hpp>
#include <wan/tensors.hpp>

#include <algorithm>
#include <cmath>

namespace wan::cuda {
namespace {

using latpar::dtype;
using latpar::detail::require;

constexpr index_t alignment = 256;

index_t aligned(index_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
}

dtype type_of(const weights& all, const tensor_info& one) {
    return one.role == tensor_role::matrix ? all.type : dtype::f32;
}

index_t bytes_of(const weights& all) {
    index_t out = aligned(4 * (all.config.freq_dim / 2));
    for (const index_t pairs : all.config.rotary_pairs()) {
        out += aligned(4 * 2 * all.config.rope_max_seq_len * pairs);
    }
    for_each_tensor(all, [&](const tensor_info& one, const auto*) {
        if (one.is_loaded) out += aligned(one.elements() * size_of(type_of(all, one)));
    });
    return out;
}

// Takes the memory and gives each tensor its place; `place(element, info, type)` fills it.
template <class Place>
void lay_out(weights& all, latpar::memory_source memory, const Place& place) {
    require(memory.space == latpar::memory_space::cuda,
            "the weights of a GPU lie in its memory, not in that of the host; pass a source of it");
    all.storage = latpar::buffer(bytes_of(all), memory);
    std::byte* next = all.storage.data();
    for_each_tensor(all, [&]<class T>(const tensor_info& one, const T*& pointer) {
        if (!one.is_loaded) return;
        const dtype type = type_of(all, one);
        place(next, one, type);
        pointer = reinterpret_cast<const T*>(next);
        next += aligned(one.elements() * size_of(type));
    });
    // From the host, so that both have the same bits.
    const auto upload = [&](const float*& pointer, const std::vector<float>& values) {
        latpar::cuda::copy_bytes(next, values.data(), 4 * std::ssize(values));
        pointer = reinterpret_cast<const float*>(next);
        next += aligned(4 * std::ssize(values));
    };
    std::vector<float> table;
    for (index_t i = 0; i < all.config.freq_dim / 2; ++i) {
        table.push_back(all.config.time_frequency(i));
    }
    upload(all.frequencies, table);
    for (std::size_t axis = 0; axis < 3; ++axis) {
        table.clear();
        for (index_t position = 0; position < all.config.rope_max_seq_len; ++position) {
            for (index_t pair = 0; pair < all.config.rotary_pairs()[axis]; ++pair) {
                const double angle = all.config.rotary_angle(axis, pair, position);
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

weights::weights(const wan::config& shape, dtype of, layer_range wanted)
    : basic_weights(shape, wanted), type(of) {
    require(type == dtype::f32 || type == dtype::bf16, "weights of ", name_of(type),
            " were asked for; on a GPU the model computes in f32 or bf16");
}

std::shared_ptr<const weights> upload_weights(const wan::weights& from, dtype type,
                                              latpar::memory_source memory) {
    auto out = std::make_shared<weights>(from.config, type, from.layers);
    std::vector<const float*> sources;
    for_each_tensor(from, [&](const tensor_info& one, const float* pointer) {
        if (one.is_loaded) sources.push_back(pointer);
    });

    // What is to be converted passes through this, piece by piece.
    constexpr index_t piece = index_t{16} << 20;
    latpar::buffer staging;
    std::size_t next = 0;
    lay_out(*out, memory, [&](std::byte* to, const tensor_info& one, dtype as) {
        const float* const source = sources[next++];
        const index_t elements = one.elements();
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
    auto out = std::make_shared<weights>(shape, type, layers);
    std::uint64_t next = seed << 20;
    lay_out(*out, memory, [&](std::byte* to, const tensor_info& one, dtype as) {
        fill_random(to, one.elements(), as, one.random_spread(), one.random_centre(), next++, {});
    });
    latpar::cuda::synchronize({});
    return out;
}

index_t weight_bytes(const wan::config& shape, dtype type, layer_range layers) {
    return bytes_of(weights(shape, type, layers));
}

}  // namespace wan::cuda

// SPDX-License-Identifier: Apache-2.0
// The weights of a Wan 2.1 transformer, from safetensors under the names of the diffusers library.
#pragma once

#include <latpar/core/memory.hpp>

#include <wan/config.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

namespace wan {

/// Layers [first, last).
struct layer_range {
    index_t first = 0;
    index_t last = 0;
};

/// Layers of a model; a last one of -1 is the model's.
///
/// Errors: usage_error for layers that the model does not have.
[[nodiscard]] layer_range chosen_layers(const config& shape, layer_range wanted);

/// The weights that were loaded: matrices of `Number`, which is float, or the bytes of a type that
/// is known at run time; vectors in float32.
template <class Number>
struct basic_weights {
    /// y = x * weight + bias, with weight [in, out]: transposed against the file.
    struct linear {
        index_t in = 0;
        index_t out = 0;
        const Number* weight = nullptr;
        const float* bias = nullptr;
    };

    struct attention {
        linear q, k, v, out;
        const float* norm_q = nullptr;
        const float* norm_k = nullptr;
    };

    struct block {
        attention self, cross;
        const float* norm2_weight = nullptr;
        const float* norm2_bias = nullptr;
        linear ffn_up, ffn_down;
        const float* modulation = nullptr;  ///< [6, width]
    };

    /// Without any tensor yet; errors: as chosen_layers.
    basic_weights(const wan::config& shape, layer_range wanted)
        : config(shape),
          layers(chosen_layers(shape, wanted)),
          blocks(static_cast<std::size_t>(shape.num_layers)) {}

    wan::config config;
    layer_range layers;  ///< those that were loaded
    linear time_1, time_2, time_projection, text_1, text_2;
    linear patch;                            ///< loaded with the first layer only
    linear head;                             ///< loaded with the last layer only
    const float* head_modulation = nullptr;  ///< [2, width], with the head
    std::vector<block> blocks;               ///< one for each layer; empty where not loaded
    latpar::buffer storage;
};

/// All weights in float32. Immutable, so that any number of model instances may share them.
using weights = basic_weights<float>;
using linear_weights = weights::linear;
using block_weights = weights::block;

struct load_options {
    /// A pipeline stage loads its own layers only; by default all. What embeds patches comes with
    /// the first layer, the head with the last.
    layer_range layers{0, -1};
    latpar::memory_source memory{};
};

/// Reads a safetensors file, or a directory in the layout of the diffusers library: config.json
/// beside diffusion_pytorch_model.safetensors, or beside its index and shards.
///
/// The configuration is the file's metadata key "config", or config.json beside it. Weights may be
/// F32, BF16, F16 or F64. Tensors outside the transformer's own names are left to their owners.
/// Errors: io_error naming the tensor that is missing, unknown or of a wrong shape.
[[nodiscard]] std::shared_ptr<const weights> load_weights(const std::filesystem::path& path,
                                                          const load_options& options = {});

/// What load_weights takes from its memory source for a model of a configuration.
///
/// Errors: usage_error for layers that the model does not have.
[[nodiscard]] index_t weight_bytes(const config& shape, layer_range layers);

/// Writes a checkpoint of small random weights, the same for the same seed: for benchmarks and
/// tests.
///
/// `config_json` goes into the metadata.
void write_random_model(const std::filesystem::path& path, std::string_view config_json,
                        std::uint64_t seed);

}  // namespace wan

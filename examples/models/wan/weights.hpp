// SPDX-License-Identifier: Apache-2.0
// The weights of a Wan 2.1 transformer, from safetensors under the names of the diffusers library.
#pragma once

#include <latpar/core/memory.hpp>

#include <wan/config.hpp>

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace wan {

/// y = x * weight + bias, with weight [in, out]: transposed against the file.
struct linear_weights {
    index_t in = 0;
    index_t out = 0;
    const float* weight = nullptr;
    const float* bias = nullptr;
};

struct attention_weights {
    linear_weights q, k, v, out;
    const float* norm_q = nullptr;
    const float* norm_k = nullptr;
};

struct block_weights {
    attention_weights self, cross;
    const float* norm2_weight = nullptr;
    const float* norm2_bias = nullptr;
    linear_weights ffn_up, ffn_down;
    const float* modulation = nullptr;  ///< [6, width]
};

/// Layers [first, last).
struct layer_range {
    index_t first = 0;
    index_t last = 0;
};

/// All weights in float32. Immutable, so that any number of model instances may share them.
struct weights {
    wan::config config;
    layer_range layers;  ///< those that were loaded
    linear_weights time_1, time_2, time_projection, text_1, text_2;
    linear_weights patch;                    ///< loaded with the first layer only
    linear_weights head;                     ///< loaded with the last layer only
    const float* head_modulation = nullptr;  ///< [2, width], with the head
    std::vector<block_weights> blocks;       ///< one for each layer; empty where not loaded
    latpar::buffer storage;
};

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

/// A tensor that a checkpoint of a configuration has.
struct tensor_shape {
    std::string name;
    std::vector<index_t> shape;
};

/// All of them, under the names of the diffusers library.
[[nodiscard]] std::vector<tensor_shape> tensor_shapes(const config& shape);

/// Writes a checkpoint of small random weights, the same for the same seed: for benchmarks and
/// tests.
///
/// `config_json` goes into the metadata.
void write_random_model(const std::filesystem::path& path, std::string_view config_json,
                        std::uint64_t seed);

}  // namespace wan

// SPDX-License-Identifier: Apache-2.0
// The weights of a Wan 2.1 transformer in device memory.
#pragma once

#include <wan/weights.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace wan::cuda {

/// y = x * weight + bias, with weight [in, out] of the model's type.
struct linear_weights {
    index_t in = 0;
    index_t out = 0;
    const std::byte* weight = nullptr;
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

/// As wan::weights, but in device memory: matrices in f32 or bf16, vectors in f32. Immutable, so
/// that any number of model instances on the device may share them.
struct weights {
    wan::config config;
    layer_range layers;  ///< those that are here
    latpar::dtype type = latpar::dtype::f32;
    linear_weights time_1, time_2, time_projection, text_1, text_2;
    linear_weights patch;                    ///< with the first layer only
    linear_weights head;                     ///< with the last layer only
    const float* head_modulation = nullptr;  ///< [2, width], with the head
    std::vector<block_weights> blocks;       ///< one for each layer; empty where not here
    const float* frequencies = nullptr;      ///< of the time embedding: [freq_dim / 2]
    /// Of the rotary embedding along T, H, W: [rope_max_seq_len, pairs, 2], cosine and sine.
    std::array<const float*, 3> rotary{};
    latpar::buffer storage;
};

/// Copies the layers that were loaded to the device, matrices as `type`, f32 or bf16.
///
/// Stream: blocks the host. Memory: device memory from `memory`, and some while it runs.
/// Errors: usage_error for another type, and for memory of the host.
[[nodiscard]] std::shared_ptr<const weights> upload_weights(const wan::weights& from,
                                                            latpar::dtype type,
                                                            latpar::memory_source memory);

/// Small random weights made on the device, the same for the same seed: for benchmarks.
///
/// Stream, memory, errors: as upload_weights; usage_error for layers that the model does not have.
[[nodiscard]] std::shared_ptr<const weights> random_weights(const wan::config& shape,
                                                            latpar::dtype type,
                                                            latpar::memory_source memory,
                                                            std::uint64_t seed,
                                                            layer_range layers = {0, -1});

/// What the weights take from their memory source, once they are there.
[[nodiscard]] index_t weight_bytes(const wan::config& shape, latpar::dtype type,
                                   layer_range layers = {0, -1});

}  // namespace wan::cuda

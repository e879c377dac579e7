// SPDX-License-Identifier: Apache-2.0
// The weights of a Wan 2.1 transformer in device memory.
#pragma once

#include <wan/weights.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace wan::cuda {

/// As wan::weights, but in device memory: matrices in f32 or bf16, vectors in f32. Immutable, so
/// that any number of model instances on the device may share them.
struct weights : basic_weights<std::byte> {
    /// Errors: usage_error for another type, and for layers that the model does not have.
    weights(const wan::config& shape, latpar::dtype type, layer_range wanted);

    latpar::dtype type;
    const float* frequencies = nullptr;  ///< of the time embedding: [freq_dim / 2]
    /// Of the rotary embedding along T, H, W: [rope_max_seq_len, pairs, 2], cosine and sine.
    std::array<const float*, 3> rotary{};
};
using linear_weights = weights::linear;
using block_weights = weights::block;

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

// SPDX-License-Identifier: Apache-2.0
// What an instance of the transformer takes, before there is one.
#pragma once

#include <latpar/core/box.hpp>
#include <latpar/core/dtype.hpp>

#include <wan/config.hpp>
#include <wan/weights.hpp>

namespace wan {

/// How an instance of the transformer is to be used, as far as its memory goes.
struct memory_request {
    layer_range layers{0, -1};  ///< those that it runs; by default all
    latpar::extents3 window{};  ///< latents (T, H, W) of one sample, all on one rank
    /// Latent frames of another window whose keys and values a feature cache lends.
    index_t lent_latents = 0;
    index_t text_tokens = 0;  ///< of the texts of all branches together
    int threads = 1;          ///< of the executor
    /// Whether embed, layers and head are called apart: hidden tensors are then the caller's.
    bool in_stages = false;
};

/// Bytes on one rank. Samples of a batch and branches of guidance go through one by one, so that
/// their number counts in the texts only.
struct memory_plan {
    index_t weights = 0;  ///< of the layers, of what embeds times, texts and patches, of the head
    index_t text = 0;     ///< every text, embedded, and its keys and values in each layer
    /// Hidden rows (unless in stages), queries, keys, values and outputs of attention, and the
    /// patches that the head leaves (with the last layer).
    index_t activations = 0;
    index_t scratch = 0;  ///< of the executor, for all its threads

    [[nodiscard]] index_t total() const noexcept { return weights + text + activations + scratch; }
};

/// Plans the memory of a `transformer` with `local_attention`: what its weights take from their
/// memory source and the rest from the executor's, at most and once all has been called.
///
/// Times, rotary tables and modulations of a call, which are a few rows of the model's width, are
/// left out, and so is what a file takes while it is read.
/// Errors: usage_error for layers that the model does not have, and for windows or lent latents
/// that are not whole patches.
[[nodiscard]] memory_plan plan_memory(const config& shape, const memory_request& wanted);

/// What any plan begins with, for a model of `type`: its texts, and the activations that a model
/// has wherever it computes; weights and scratch memory are left 0. Errors: as plan_memory.
[[nodiscard]] memory_plan begin_plan(const config& shape, const memory_request& wanted,
                                     latpar::dtype type);

}  // namespace wan

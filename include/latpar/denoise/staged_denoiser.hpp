// SPDX-License-Identifier: Apache-2.0
// The staged_denoiser concept: a model whose layers can be run apart.
#pragma once

#include <latpar/denoise/denoiser.hpp>
#include <latpar/denoise/feature_cache.hpp>

#include <concepts>
#include <vector>

namespace latpar::inline v0 {

/// Hidden activations between layers: [B, tokens, width].
using hidden_view = basic_view<std::byte, 3>;

/// Shape and type of one hidden tensor that passes from layer to layer.
struct hidden_signature {
    std::array<index_t, 3> extents{};
    dtype type = dtype::f32;
    friend bool operator==(const hidden_signature&, const hidden_signature&) = default;
};

/// A denoiser in pieces: embed, then layers, then head, equals one call of the whole.
///
/// - `prepare(info, stream) -> context`: what every layer needs (time embedding, text, positions);
///   computed on each rank, never sent.
/// - `signature(batch, window)`: the hidden tensors for latents of that (T, H, W), in order; models
///   with two streams of tokens declare two.
/// - `embed(z, context, hidden, stream)`, `layers(first, last, context, hidden, cache, stream)` for
///   layers [first, last) in place, `head(context, hidden, prediction, stream)`.
/// - `cache`: null, or a `feature_cache` of the model (latpar's, or one of its own that is made of
///   a plan, kernels and a memory source, and has `keep` and `clear`) that lends further keys and
///   values to self-attention and takes those of this window.
/// - `plan_cache(first, last, branches, latents, window)`: the cache for layers [first, last) that
///   keeps `latents` latent frames of windows of that (T, H, W); its bytes are proportional to the
///   layers.
/// - A model whose ranks talk to each other has `abort(reason)`, which ends their waiting.
template <class M>
concept staged_denoiser = requires(M& model, const M& fixed, const_latent_view z,
                                   const step_info& info, latent_view prediction, stream_ref stream,
                                   index_t layer, const extents3& window,
                                   std::span<const hidden_view> hidden,
                                   std::span<const guidance_branch> branches,
                                   typename M::context& context, typename M::feature_cache* cache) {
    { fixed.layer_count() } -> std::convertible_to<index_t>;
    { fixed.signature(layer, window) } -> std::same_as<std::vector<hidden_signature>>;
    { model.prepare(info, stream) } -> std::same_as<typename M::context>;
    model.embed(z, context, hidden, stream);
    model.layers(layer, layer, context, hidden, cache, stream);
    model.head(context, hidden, prediction, stream);
    { fixed.plan_cache(layer, layer, branches, layer, window) } -> std::same_as<feature_cache_plan>;
    cache->keep(layer, layer);
    cache->clear();
};

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// What the trunks of the host and of a GPU share: weights, texts, memory and the checks of a call.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/denoise/feature_cache.hpp>

#include <wan/attention.hpp>
#include <wan/token_window.hpp>
#include <wan/weights.hpp>

#include <array>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace wan {

/// All of a trunk that does not compute. `Weights` are a basic_weights.
template <class Weights, class Executor>
class basic_trunk {
public:
    using weights = Weights;
    using executor = Executor;

    /// What self-attention reads and writes; valid until the next call of before_attention.
    struct projected {
        const_heads_view q, k, v;
        heads_view out;
    };

    [[nodiscard]] const config& shape() const noexcept { return weights_->config; }

    /// The cache for layers [first, last) that keeps `latents` latent frames of a window.
    ///
    /// Errors: usage_error unless those are whole patches.
    [[nodiscard]] latpar::feature_cache_plan plan_cache(
        index_t first, index_t last, std::span<const latpar::guidance_branch> branches,
        index_t latents, const latpar::extents3& window) const {
        return plan_feature_cache(shape(), first, last, branches, latents, window,
                                  executor_->type());
    }

    /// Memory for the hidden rows of one sample.
    [[nodiscard]] float* hidden_rows(const token_window& at) {
        return room<float>(hidden_, at.tokens() * shape().width());
    }

protected:
    // Vectors of a block's modulation.
    enum : int { attention_shift, attention_scale, attention_gate, ffn_shift, ffn_scale, ffn_gate };
    // Vectors of the head's.
    enum : int { head_shift, head_scale };

    struct text_state {
        index_t tokens = 0;
        latpar::buffer embedded;           // [tokens, width]
        std::vector<latpar::buffer> k, v;  // one for each layer: [tokens, width]
    };

    basic_trunk(std::shared_ptr<const Weights> model, std::shared_ptr<Executor> exec,
                positions where)
        : weights_(std::move(model)), executor_(std::move(exec)), positions_(where) {
        latpar::detail::require(weights_ && executor_,
                                "the transformer needs weights and an executor");
    }

    // Room for `elements`; the old content is lost if it has to grow.
    template <class T>
    [[nodiscard]] T* room(latpar::buffer& buffer, index_t elements) const {
        const index_t bytes = elements * static_cast<index_t>(sizeof(T));
        if (buffer.bytes() < bytes) {
            buffer = latpar::buffer();
            buffer = latpar::buffer(bytes, executor_->memory());
        }
        return reinterpret_cast<T*>(buffer.data());
    }

    // The tokens of a text [tokens, text_dim].
    [[nodiscard]] index_t tokens_of(std::span<const float> embeddings) const {
        const index_t columns = shape().text_dim;
        const index_t tokens = std::ssize(embeddings) / columns;
        latpar::detail::require(tokens > 0 && std::ssize(embeddings) == tokens * columns,
                                "a text of ", embeddings.size(),
                                " numbers does not consist of rows of ", columns);
        return tokens;
    }

    [[nodiscard]] const text_state& text(latpar::guidance_branch branch) const {
        const text_state& out = texts_.at(static_cast<std::size_t>(branch));
        latpar::detail::require(out.tokens > 0, "no text was set for the ", name_of(branch),
                                " branch; call set_text first");
        return out;
    }

    [[nodiscard]] const typename Weights::block& block(index_t layer) const {
        require_loaded(weights_->layers.first <= layer && layer < weights_->layers.last, "layer ",
                       layer, " was not loaded; only");
        return weights_->blocks[static_cast<std::size_t>(layer)];
    }

    [[nodiscard]] const typename Weights::linear& patch_embedding() const {
        require_loaded(weights_->patch.weight,
                       "what embeds patches was not loaded; it comes with layer 0,");
        return weights_->patch;
    }

    [[nodiscard]] const typename Weights::linear& head_projection() const {
        require_loaded(weights_->head.weight,
                       "the head was not loaded; it comes with the last layer,");
        return weights_->head;
    }

    // Empties an entry for the latents that the cache is to keep of this window. Returns which of
    // their tokens are computed here.
    template <class Cache>
    [[nodiscard]] latpar::feature_rows begin_entry(const token_window& at, Cache& cache,
                                                   const latpar::feature_key& key) const {
        cache.begin(key, {});
        const latpar::feature_rows rows =
            kept_rows(shape(), at, cache.first_latent(), cache.latents());
        if (cache.latents() > 0) cache.begin(key, rows);
        return rows;
    }

    // Room for q_, k_, v_ and out_, as heads; behind the keys and values is that for those lent.
    [[nodiscard]] projected room_for_attention(index_t tokens, index_t lent) {
        const auto heads_of = [&](latpar::buffer& buffer, index_t rows) {
            const std::array<index_t, 3> extents{rows, shape().num_attention_heads,
                                                 shape().attention_head_dim};
            const index_t bytes = rows * shape().width() * size_of(executor_->type());
            return heads_view{room<std::byte>(buffer, bytes), extents,
                              latpar::dense_strides(extents), executor_->type(),
                              executor_->memory().space};
        };
        return {heads_of(q_, tokens), heads_of(k_, tokens + lent), heads_of(v_, tokens + lent),
                heads_of(out_, tokens)};
    }

    std::shared_ptr<const Weights> weights_;
    std::shared_ptr<Executor> executor_;
    positions positions_;
    std::array<text_state, 4> texts_;
    latpar::buffer hidden_, q_, k_, v_, out_, patches_;

private:
    template <class... What>
    void require_loaded(bool is_loaded, const What&... what) const {
        latpar::detail::require(is_loaded, what..., " [", weights_->layers.first, ", ",
                                weights_->layers.last, ") were");
    }
};

}  // namespace wan

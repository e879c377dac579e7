// SPDX-License-Identifier: Apache-2.0
// The Wan 2.1 text-to-video transformer as a denoiser, whole or in stages.
#pragma once

#include <latpar/comm/agreement.hpp>

#include <wan/trunk.hpp>

#include <algorithm>
#include <concepts>
#include <limits>
#include <string_view>
#include <tuple>
#include <type_traits>

namespace wan {

/// One instance of the model: a `denoiser` and a `staged_denoiser` for guidance branches whose text
/// was set. Weights may be shared with other instances; an executor may not.
///
/// `Attention` is any `attention`; the layer policies plug in here. `Trunk` is everything else, and
/// says where it is computed: `trunk` on the host, `cuda::trunk` on a GPU. The result does not
/// depend on the number of threads, and the stages give what the whole gives, bit for bit.
/// Memory: latents lie where the trunk computes, in f32, bf16 or f16; activations grow linearly
/// with the tokens, come from the executor's memory source and are kept for the next call.
/// Errors: where ranks share the tokens, what one of them throws in a call ends the others' too.
/// Source: Wan 2.1 (arXiv 2503.20314), as the diffusers library computes it.
/// Example:
///     auto exec = std::make_shared<wan::executor>();
///     wan::transformer model(wan::load_weights("model.safetensors"), exec);
///     model.set_text(latpar::guidance_branch::conditional, embeddings);
///     model(z, info, prediction, {});
template <attention Attention = local_attention, class Trunk = wan::trunk>
class transformer {
public:
    using context = typename Trunk::context;
    using executor = typename Trunk::executor;
    using feature_cache = typename Trunk::feature_cache;
    using weights = typename Trunk::weights;

    explicit transformer(std::shared_ptr<const typename Trunk::weights> model,
                         std::shared_ptr<typename Trunk::executor> exec,
                         positions where = positions::local) requires
        std::same_as<Attention, typename Trunk::local_attention>
        : transformer(std::move(model), exec, Attention(exec), where) {}

    transformer(std::shared_ptr<const typename Trunk::weights> model,
                std::shared_ptr<typename Trunk::executor> exec, Attention attend,
                positions where = positions::local)
        : trunk_(std::move(model), std::move(exec), where), attend_(std::move(attend)) {}

    [[nodiscard]] const config& shape() const noexcept { return trunk_.shape(); }
    [[nodiscard]] index_t layer_count() const noexcept { return shape().num_layers; }
    [[nodiscard]] index_t max_batch() const noexcept { return std::numeric_limits<index_t>::max(); }

    /// The text that a guidance branch is to follow: embeddings [tokens, text_dim].
    ///
    /// Its keys and values are computed here, once for all steps.
    /// Errors: usage_error unless there is at least one whole row.
    void set_text(latpar::guidance_branch branch, std::span<const float> embeddings) {
        trunk_.set_text(branch, embeddings);
    }

    /// The model's embedding of that text, as a range of float on the host: [tokens, width].
    [[nodiscard]] auto embedded_text(latpar::guidance_branch branch) const {
        return trunk_.embedded_text(branch);
    }

    /// What it computes with, for what only some trunks can do.
    [[nodiscard]] Trunk& trunk() noexcept { return trunk_; }

    /// Predicts for every sample of the batch, one after another.
    void operator()(latpar::const_latent_view z, const latpar::step_info& info,
                    latpar::latent_view prediction, latpar::stream_ref stream) {
        together([&] {
            context ctx = prepare(info, stream);
            for (index_t i = 0; i < std::ssize(ctx.samples); ++i) {
                float* const hidden = trunk_.hidden_rows(ctx);
                trunk_.embed(z, ctx, i, hidden, stream);
                for (index_t layer = 0; layer < layer_count(); ++layer) {
                    run_layer(layer, ctx, i, hidden, nullptr, stream);
                }
                run_head(ctx, i, hidden, prediction, stream);
            }
        });
    }

    /// Errors: usage_error for a window that is not made of whole patches or reaches past the
    /// positions that the model knows, and for a branch without text.
    [[nodiscard]] context prepare(const latpar::step_info& info, latpar::stream_ref stream) {
        return together([&] {
            context out = trunk_.prepare(info, stream);
            if constexpr (requires { attend_.token_range(index_t{}); }) {
                std::tie(out.begin, out.end) = attend_.token_range(out.end);
            }
            return out;
        });
    }

    [[nodiscard]] std::vector<latpar::hidden_signature> signature(
        index_t batch, const latpar::extents3& window) const {
        index_t tokens = latpar::volume_of(shape().token_grid(window));
        if constexpr (requires { attend_.token_range(index_t{}); }) {
            const auto [begin, end] = attend_.token_range(tokens);
            tokens = end - begin;
        }
        return {{{batch, tokens, shape().width()}, latpar::dtype::f32}};
    }

    /// Errors: usage_error unless the latents that are kept are whole patches.
    [[nodiscard]] latpar::feature_cache_plan plan_cache(
        index_t first, index_t last, std::span<const latpar::guidance_branch> branches,
        index_t latents, const latpar::extents3& window) const {
        latpar::feature_cache_plan out = trunk_.plan_cache(first, last, branches, latents, window);
        if constexpr (requires { attend_.token_range(index_t{}); }) {
            // Wherever in the window they are, a rank has no more of them than tokens.
            const auto [begin, end] =
                attend_.token_range(latpar::volume_of(shape().token_grid(window)));
            out.tokens = std::min(out.tokens, end - begin);
        }
        return out;
    }

    void embed(latpar::const_latent_view z, context& ctx,
               std::span<const latpar::hidden_view> hidden, latpar::stream_ref stream) {
        together([&] {
            for (index_t i = 0; i < std::ssize(ctx.samples); ++i) {
                trunk_.embed(z, ctx, i, rows_of(ctx, hidden, i), stream);
            }
        });
    }

    /// Errors: usage_error if a cache is to serve two samples of one branch, or was not planned for
    /// these layers, branches and latents.
    void layers(index_t first, index_t last, context& ctx,
                std::span<const latpar::hidden_view> hidden, feature_cache* cache,
                latpar::stream_ref stream) {
        together([&] {
            for (index_t i = 0; cache && i < std::ssize(ctx.samples); ++i) {
                const auto branch = ctx.samples[static_cast<std::size_t>(i)].branch;
                latpar::detail::require(
                    std::ranges::count_if(
                        ctx.samples, [&](const auto& other) { return other.branch == branch; }) ==
                        1,
                    "a feature cache serves one sample of the ", name_of(branch),
                    " branch at a time; pass the others in calls of their own");
            }
            for (index_t layer = first; layer < last; ++layer) {
                for (index_t i = 0; i < std::ssize(ctx.samples); ++i) {
                    run_layer(layer, ctx, i, rows_of(ctx, hidden, i), cache, stream);
                }
            }
        });
    }

    /// Ends the waiting of the ranks that share the tokens.
    void abort(std::string_view reason) requires requires(Attention& a) { a.abort(reason); }
    { attend_.abort(reason); }

    void head(context& ctx, std::span<const latpar::hidden_view> hidden,
              latpar::latent_view prediction, latpar::stream_ref stream) {
        together([&] {
            for (index_t i = 0; i < std::ssize(ctx.samples); ++i) {
                run_head(ctx, i, rows_of(ctx, hidden, i), prediction, stream);
            }
        });
    }

private:
    /// Calls `f`; what it throws ends the waiting of the ranks that share the tokens.
    template <std::invocable F>
    std::invoke_result_t<F> together(F&& f) {
        if constexpr (requires(std::string_view reason) { attend_.abort(reason); }) {
            return latpar::guarded(attend_, f);
        } else {
            return f();
        }
    }

    void run_layer(index_t layer, context& ctx, index_t sample, float* hidden, feature_cache* cache,
                   latpar::stream_ref stream) {
        const auto branch = ctx.samples[static_cast<std::size_t>(sample)].branch;
        begin_attention(ctx, cache ? cache->rows({layer, branch}) : latpar::feature_rows{});
        const auto views = trunk_.before_attention(layer, ctx, sample, hidden, cache, stream);
        attend_(views.q, views.k, views.v, views.out, lse_view{}, stream);
        trunk_.after_attention(layer, ctx, sample, hidden, stream);
    }

    void run_head(const context& ctx, index_t sample, const float* hidden,
                  latpar::latent_view prediction, latpar::stream_ref stream) {
        const auto patches = trunk_.head(ctx, sample, hidden, stream);
        if constexpr (requires { attend_.gather(patches, stream); }) {
            begin_attention(ctx, {});
            attend_.gather(patches, stream);
        }
        trunk_.unpatchify(ctx, sample, prediction, stream);
    }

    void begin_attention(const context& ctx, const latpar::feature_rows& lent) {
        const index_t tokens = latpar::volume_of(ctx.grid);
        if constexpr (requires { attend_.begin(tokens, lent); }) attend_.begin(tokens, lent);
    }

    [[nodiscard]] float* rows_of(const context& ctx, std::span<const latpar::hidden_view> hidden,
                                 index_t sample) const {
        latpar::detail::require(hidden.size() == 1, "the transformer has one hidden tensor, not ",
                                hidden.size());
        const latpar::hidden_view& view = hidden[0];
        const std::array<index_t, 3> expected{std::ssize(ctx.samples), ctx.tokens(),
                                              shape().width()};
        latpar::detail::require(
            view.extents == expected && view.is_contiguous() && view.space == Trunk::space,
            "the hidden tensor is to be dense ", name_of(Trunk::space), " memory of [", expected[0],
            ',', expected[1], ',', expected[2], "]; got [", view.extents[0], ',', view.extents[1],
            ',', view.extents[2], ']');
        return view.template as<float>() + sample * expected[1] * expected[2];
    }

    Trunk trunk_;
    Attention attend_;
};

}  // namespace wan

// SPDX-License-Identifier: Apache-2.0
// The transformer without its self-attention: embeddings, projections, feed-forward and head.
#pragma once

#include <latpar/denoise/staged_denoiser.hpp>

#include <wan/attention.hpp>
#include <wan/basic_trunk.hpp>
#include <wan/executor.hpp>
#include <wan/token_window.hpp>
#include <wan/weights.hpp>

#include <array>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace wan {

/// Keys before their norm and rotation, and values; layers() puts those of another window behind
/// those of its own, at the frame positions after the window's last.
using feature_cache = latpar::feature_cache<>;

/// What every layer needs to know of one call: times and positions. Never sent.
struct context : token_window {
    struct sample {
        latpar::guidance_branch branch{};
        index_t frames = 1;       ///< 1, or one for each frame with a timestep of its own
        std::vector<float> time;  ///< [frames, width]
        std::vector<float> time_projection;  ///< [frames, 6 width]
    };

    std::vector<sample> samples;
    /// Cosines and sines of the rotary embedding along each axis: [positions, pairs].
    std::array<std::vector<float>, 3> cosine, sine;
};

/// One instance of the model but for its self-attention. Single samples; `transformer` adds the
/// loop over the batch. Calls take a stream, as those of a GPU do, and have finished on return.
class trunk : public basic_trunk<weights, executor> {
public:
    using context = wan::context;
    using feature_cache = wan::feature_cache;
    using local_attention = wan::local_attention;
    static constexpr latpar::memory_space space = latpar::memory_space::host;

    trunk(std::shared_ptr<const weights> model, std::shared_ptr<executor> exec, positions where)
        : basic_trunk(std::move(model), std::move(exec), where) {}

    void set_text(latpar::guidance_branch branch, std::span<const float> embeddings);
    [[nodiscard]] std::span<const float> embedded_text(latpar::guidance_branch branch) const;

    /// The context of all tokens of the window.
    [[nodiscard]] context prepare(const latpar::step_info& info, latpar::stream_ref) const;

    void embed(latpar::const_latent_view z, const context& ctx, index_t sample, float* hidden,
               latpar::stream_ref);

    /// Everything before the self-attention of `layer`; the views are valid until the next call.
    [[nodiscard]] projected before_attention(index_t layer, context& ctx, index_t sample,
                                             const float* hidden, feature_cache* cache,
                                             latpar::stream_ref);
    /// Everything after it.
    void after_attention(index_t layer, const context& ctx, index_t sample, float* hidden,
                         latpar::stream_ref);

    /// The patches of the whole window, [grid, patch]; those of [begin, end) are written.
    [[nodiscard]] latpar::basic_view<std::byte, 2> head(const context& ctx, index_t sample,
                                                        const float* hidden, latpar::stream_ref);
    /// Puts the last patches into the prediction of one sample.
    void unpatchify(const context& ctx, index_t sample, latpar::latent_view prediction,
                    latpar::stream_ref);

private:
    template <class Task>
    void for_row_blocks(index_t rows, index_t floats, const Task& task);
    template <class F>
    void for_frames(const context& ctx, index_t frames, index_t row, index_t rows, F&& f) const;
    void modulate(std::span<const float> table, std::span<const float> time, index_t period,
                  std::initializer_list<int> scales);
    [[nodiscard]] const float* modulation(index_t frame, int vector) const;
    void normalize(const context& ctx, index_t frames, const float* hidden, index_t first,
                   index_t rows, int scale, int shift, float* out) const;
    void add(const context& ctx, index_t frames, float* hidden, const float* change, index_t first,
             index_t rows, int gate) const;
    void rotate(const context& ctx, float* rows, index_t first_token, index_t count,
                float* scratch) const;
    void lend(context& ctx, const feature_cache& cache, const latpar::feature_key& key,
              const block_weights& weights, float* keys, float* values);
    void apply(const linear_weights& layer, const float* x, index_t rows, float* y) const;

    std::vector<float> modulation_;  // [frames, vectors, width], 1 added to the scales
    index_t vectors_ = 0;
};

}  // namespace wan

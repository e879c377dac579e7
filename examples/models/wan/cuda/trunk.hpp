// SPDX-License-Identifier: Apache-2.0
// The transformer without its self-attention, on a GPU.
#pragma once

#include <latpar/cuda/kernels.hpp>
#include <latpar/denoise/staged_denoiser.hpp>

#include <wan/basic_trunk.hpp>
#include <wan/cuda/attention.hpp>
#include <wan/cuda/executor.hpp>
#include <wan/cuda/weights.hpp>

#include <memory>
#include <span>
#include <vector>

namespace wan::cuda {

struct row_update;
struct rotation;

/// Keys before their norm and rotation, and values, in device memory; the type is the model's.
using feature_cache = latpar::feature_cache<latpar::cuda::kernels>;

/// What every layer needs to know of one call: times and positions. Never sent.
///
/// Memory: its times lie in the trunk's device memory, which a later context gets when this one and
/// its copies are gone: all contexts of a trunk are worked on in one stream.
struct context : token_window {
    struct sample {
        latpar::guidance_branch branch{};
        index_t frames = 1;           ///< 1, or one for each frame with a timestep of its own
        const float* time = nullptr;  ///< [frames, width]
        const float* time_projection = nullptr;  ///< [frames, 6 width]
    };

    std::vector<sample> samples;
    std::shared_ptr<const latpar::buffer> times;
};

/// wan::trunk on a GPU. The hidden rows are float32, queries, keys, values and outputs of attention
/// of the executor's type.
///
/// Stream: all is ordered on the stream that is passed, and nothing waits for it but `set_text` and
/// `embedded_text`. Calls can be captured in a CUDA graph after one of the same window, which takes
/// the memory; what a graph reads when it is replayed is latents, texts (as many tokens as when it
/// was captured) and the timesteps that set_device_timesteps names; the rest of step_info is that
/// of the capture. It can be replayed until a call needs more memory.
/// Memory: latents, conditions and hidden rows are device memory. It comes from the executor's
/// source, grows with the largest window and number of contexts alive, and stays: a call that needs
/// no more takes none.
class trunk : public basic_trunk<weights, executor> {
public:
    using context = wan::cuda::context;
    using feature_cache = wan::cuda::feature_cache;
    using local_attention = wan::cuda::attention;
    static constexpr latpar::memory_space space = latpar::memory_space::cuda;

    /// Errors: usage_error for weights of another type than the executor's.
    trunk(std::shared_ptr<const weights> model, std::shared_ptr<executor> exec, positions where);

    /// Waits for all that the device has to do, before and after.
    void set_text(latpar::guidance_branch branch, std::span<const float> embeddings);
    /// Waits for the device.
    [[nodiscard]] std::vector<float> embedded_text(latpar::guidance_branch branch) const;

    /// From the next `prepare` on timesteps come from this array in device memory, one for each
    /// sample, when the work is done: a captured graph can be replayed for another step. Null:
    /// those of step_info.
    void set_device_timesteps(const float* timesteps) noexcept { timesteps_ = timesteps; }

    [[nodiscard]] context prepare(const latpar::step_info& info, latpar::stream_ref stream);

    void embed(latpar::const_latent_view z, const context& ctx, index_t sample, float* hidden,
               latpar::stream_ref stream);

    [[nodiscard]] projected before_attention(index_t layer, const context& ctx, index_t sample,
                                             const float* hidden, feature_cache* cache,
                                             latpar::stream_ref stream);
    void after_attention(index_t layer, const context& ctx, index_t sample, float* hidden,
                         latpar::stream_ref stream);

    [[nodiscard]] latpar::basic_view<std::byte, 2> head(const context& ctx, index_t sample,
                                                        const float* hidden,
                                                        latpar::stream_ref stream);
    void unpatchify(const context& ctx, index_t sample, latpar::latent_view prediction,
                    latpar::stream_ref stream);

private:
    [[nodiscard]] latpar::dtype type() const noexcept { return weights_->type; }
    [[nodiscard]] index_t row_bytes(index_t columns) const noexcept;
    [[nodiscard]] std::byte* rows(latpar::buffer& buffer, index_t count, index_t columns);
    [[nodiscard]] std::shared_ptr<const latpar::buffer> time_memory(index_t floats);
    [[nodiscard]] row_update update_of(const context& ctx, const context::sample& at,
                                       const float* hidden) const;
    [[nodiscard]] rotation rotation_of(const context& ctx, index_t first) const;
    void lend(const context& ctx, const feature_cache& cache, const latpar::feature_key& key,
              const block_weights& weights, std::byte* keys, std::byte* values,
              latpar::stream_ref stream) const;

    attention cross_;
    const float* timesteps_ = nullptr;
    std::vector<std::shared_ptr<latpar::buffer>> times_;  // those that no context has are free
    latpar::buffer rows_, wide_;
};

}  // namespace wan::cuda

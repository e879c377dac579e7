// SPDX-License-Identifier: Apache-2.0
// Guidance around a model, on one rank.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/denoise/denoiser.hpp>
#include <latpar/denoise/detail/combine_branches.hpp>
#include <latpar/kernel/host.hpp>

#include <utility>
#include <vector>

namespace latpar::inline v0 {

/// A denoiser that calls a model for each branch of a guidance rule and combines the predictions.
///
/// Wrap the model with this and the guided prediction is all that policies around it need to send:
/// half the bytes of both branches, and both see the same cut of the latent. To give the branches
/// to different ranks, take `guidance_parallel`.
/// Samples of one batch may be at different steps; each gets the weights of its own.
/// Stream: ordered on it.
/// Memory: a further prediction for each further branch; taken when a call needs more than any
/// before, and kept.
/// Errors: usage_error for a step that the rule has no weights for.
template <denoiser Model, kernel_set Kernels = kernel::host>
class guided {
public:
    guided(Model model, guidance_rule rule, Kernels kernels = {}, memory_source source = {})
        : model_(std::move(model)),
          rule_(std::move(rule)),
          kernels_(std::move(kernels)),
          source_(source) {}
    /// u + scale (c - u).
    guided(Model model, double scale, Kernels kernels = {}, memory_source source = {})
        : guided(std::move(model), guidance_rule::classifier_free(scale), std::move(kernels),
                 source) {}

    void operator()(const_latent_view z, const step_info& info, latent_view prediction,
                    stream_ref stream) {
        const std::vector<int> live = detail::live_branches(rule_, info.samples);
        const index_t each = detail::aligned(prediction.bytes());
        const index_t bytes = each * (static_cast<index_t>(live.size()) - 1);
        if (storage_.bytes() < bytes) {
            storage_ = {};
            storage_ = buffer(bytes, source_);
        }
        predictions_.assign(rule_.branches().size(), {});
        std::byte* next = storage_.data();
        for (const int k : live) {
            latent_view out = prediction;
            // The first branch is predicted where the sum will stand.
            if (k != live.front()) {
                out.data = next;
                out.strides = dense_strides(prediction.extents);
                next += each;
            }
            predictions_[static_cast<std::size_t>(k)] = out;
            samples_.call(model_, z, info, rule_.branches()[static_cast<std::size_t>(k)], out,
                          stream);
        }
        detail::combine_branches(kernels_, rule_, info.samples, predictions_, prediction, stream);
    }

    [[nodiscard]] index_t max_batch() const { return max_batch_of(model_); }
    [[nodiscard]] Model& model() noexcept { return model_; }
    [[nodiscard]] const guidance_rule& rule() const noexcept { return rule_; }
    void abort(std::string_view reason) requires requires(Model& m) {
        detail::unwrapped(m).abort(reason);
    }
    { detail::abort_model(model_, reason); }

private:
    Model model_;
    guidance_rule rule_;
    Kernels kernels_;
    memory_source source_;
    buffer storage_;
    std::vector<const_latent_view> predictions_;
    detail::branch_call samples_;
};

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// Classifier-free guidance around a model.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/denoise/denoiser.hpp>
#include <latpar/kernel/host.hpp>

#include <utility>
#include <vector>

namespace latpar::inline v0 {

/// A denoiser that calls a model for both branches and predicts u + scale (c - u).
///
/// Wrap the model with this and the guided prediction is all that policies around it need to send:
/// half the bytes of both branches, and both see the same cut of the latent.
/// Stream: ordered on it.
/// Memory: one further prediction; taken when a call needs more than any before, and kept.
/// Source: Ho & Salimans, Classifier-Free Diffusion Guidance (arXiv 2207.12598).
template <denoiser Model, kernel_set Kernels = kernel::host>
class guided {
public:
    guided(Model model, double scale, Kernels kernels = {}, memory_source source = {})
        : model_(std::move(model)), scale_(scale), kernels_(std::move(kernels)), source_(source) {}

    void operator()(const_latent_view z, const step_info& info, latent_view prediction,
                    stream_ref stream) {
        if (storage_.bytes() < prediction.bytes()) {
            storage_ = {};
            storage_ = buffer(prediction.bytes(), source_);
        }
        latent_view unconditional = prediction;
        unconditional.data = storage_.data();
        unconditional.strides = dense_strides(prediction.extents);
        call(z, info, guidance_branch::conditional, prediction, stream);
        call(z, info, guidance_branch::unconditional, unconditional, stream);
        const std::array<const_latent_view, 2> inputs{prediction, unconditional};
        const std::array<float, 2> weights{static_cast<float>(scale_),
                                           static_cast<float>(1 - scale_)};
        kernels_.linear_combination(inputs, weights, std::array{prediction}, stream);
    }

    [[nodiscard]] Model& model() noexcept { return model_; }

private:
    void call(const_latent_view z, step_info info, guidance_branch branch, latent_view prediction,
              stream_ref stream) {
        samples_.assign(info.samples.begin(), info.samples.end());
        for (sample_info& sample : samples_) sample.branch = branch;
        info.samples = samples_;
        model_(z, info, prediction, stream);
    }

    Model model_;
    double scale_;
    Kernels kernels_;
    memory_source source_;
    buffer storage_;
    std::vector<sample_info> samples_;
};

}  // namespace latpar::inline v0

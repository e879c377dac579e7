// SPDX-License-Identifier: Apache-2.0
// What guidance on one rank and on several have in common.
#pragma once

#include <latpar/denoise/denoiser.hpp>
#include <latpar/denoise/guidance_rule.hpp>
#include <latpar/kernel/kernel_set.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace latpar::inline v0::detail {

/// Calls a model for one branch; keeps the samples' memory between calls.
class branch_call {
public:
    template <denoiser Model>
    void call(Model& model, const const_latent_view& z, step_info info, guidance_branch branch,
              const latent_view& prediction, stream_ref stream) {
        samples_.assign(info.samples.begin(), info.samples.end());
        for (sample_info& sample : samples_) sample.branch = branch;
        info.samples = samples_;
        model(z, info, prediction, stream);
    }

private:
    std::vector<sample_info> samples_;
};

/// The branches that any of the samples needs.
[[nodiscard]] inline std::vector<int> live_branches(const guidance_rule& rule,
                                                    std::span<const sample_info> samples) {
    require(!samples.empty(), "step_info names no sample; give one for each of the batch");
    std::vector<int> out = rule.live_branches(samples.front().step);
    for (const sample_info& sample : samples.subspan(1)) {
        if (sample.step == samples.front().step) continue;
        for (const int k : rule.live_branches(sample.step)) {
            if (std::find(out.begin(), out.end(), k) == out.end()) out.push_back(k);
        }
    }
    std::sort(out.begin(), out.end());
    return out;
}

/// Sample b of a batch.
template <class Byte>
[[nodiscard]] basic_view<Byte, 5> sample_of(basic_view<Byte, 5> view, index_t b) {
    if (view.data != nullptr) view.data += b * view.strides[0] * size_of(view.type);
    view.extents[0] = 1;
    return view;
}

/// output = the sum over branches, in order, of weight times prediction; an empty view stands for
/// a branch that no sample needs. The output may be one of the predictions.
template <kernel_set Kernels>
void combine_branches(const Kernels& kernels, const guidance_rule& rule,
                      std::span<const sample_info> samples,
                      std::span<const const_latent_view> predictions, const latent_view& output,
                      stream_ref stream) {
    const std::vector<float>& first = rule.weights(samples.front().step);
    const bool alike = std::all_of(samples.begin(), samples.end(), [&](const sample_info& s) {
        return rule.weights(s.step) == first;
    });
    if (alike) {
        kernels.linear_combination(predictions, first, std::array{output}, stream);
        return;
    }
    for (std::size_t b = 0; b < samples.size(); ++b) {
        std::array<const_latent_view, kernel::max_operands> inputs{};
        for (std::size_t k = 0; k < predictions.size(); ++k) {
            inputs[k] = sample_of(predictions[k], static_cast<index_t>(b));
        }
        kernels.linear_combination(std::span(inputs).first(predictions.size()),
                                   rule.weights(samples[b].step),
                                   std::array{sample_of(output, static_cast<index_t>(b))}, stream);
    }
}

}  // namespace latpar::inline v0::detail

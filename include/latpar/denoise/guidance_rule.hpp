// SPDX-License-Identifier: Apache-2.0
// Guidance as a value: which branches of a model are called, and how they are combined.
#pragma once

#include <latpar/denoise/step_info.hpp>

#include <optional>
#include <string>
#include <vector>

namespace latpar::inline v0 {

/// A guided prediction is the sum over branches of weight times prediction; weights may change from
/// step to step.
///
/// The order of the branches is that of the sum, whoever computes them. A branch of weight zero is
/// not called, so that guidance may be limited to an interval of steps at no cost outside of it;
/// `loop::dual_paral` alone calls all, since its feature caches need every step.
/// Errors of all makers: usage_error for weights that are not finite, or are all zero in a step.
class guidance_rule {
public:
    /// u + scale (c - u), with one scale for every step.
    ///
    /// Source: Ho & Salimans, Classifier-Free Diffusion Guidance (arXiv 2207.12598).
    [[nodiscard]] static guidance_rule classifier_free(double scale);
    /// The same with a scale for each step.
    [[nodiscard]] static guidance_rule classifier_free(const std::vector<double>& scales);
    /// u + image (i - u) + text (c - i), for models with an image and a text to follow: c sees
    /// both, i the image alone, u neither.
    ///
    /// Source: Brooks et al., InstructPix2Pix (arXiv 2211.09800), equation 3.
    [[nodiscard]] static guidance_rule image_and_text(double image, double text);
    /// Any branches, each named once. weights[i][k] is that of branch k at step i; one row serves
    /// every step.
    [[nodiscard]] static guidance_rule of(std::vector<guidance_branch> branches,
                                          std::vector<std::vector<double>> weights);

    [[nodiscard]] const std::vector<guidance_branch>& branches() const noexcept {
        return branches_;
    }
    /// One for each branch. Errors: usage_error if there is no such step.
    [[nodiscard]] const std::vector<float>& weights(index_t step) const;
    /// The numbers of the branches that count at a step, in order.
    [[nodiscard]] std::vector<int> live_branches(index_t step) const;
    /// Why the rule does not serve a run of so many steps, if so.
    [[nodiscard]] std::optional<std::string> complaint_about(index_t steps) const;

    /// Equal exactly if the rules are.
    [[nodiscard]] std::string fingerprint() const;
    friend bool operator==(const guidance_rule&, const guidance_rule&) = default;

private:
    std::vector<guidance_branch> branches_;
    std::vector<std::vector<float>> weights_;
};

}  // namespace latpar::inline v0

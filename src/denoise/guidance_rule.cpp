// SPDX-License-Identifier: Apache-2.0
#include <latpar/core/error.hpp>
#include <latpar/denoise/guidance_rule.hpp>

#include <algorithm>
#include <cmath>
#include <sstream>

namespace latpar::inline v0 {

using detail::concat;
using detail::require;

guidance_rule guidance_rule::of(std::vector<guidance_branch> branches,
                                std::vector<std::vector<double>> weights) {
    require(!branches.empty(), "a guidance rule has no branch; name at least one");
    for (std::size_t k = 0; k < branches.size(); ++k) {
        require(std::count(branches.begin(), branches.end(), branches[k]) == 1,
                "a guidance rule names the branch ", name_of(branches[k]),
                " more than once; give it one weight");
    }
    require(!weights.empty(),
            "a guidance rule has no weights; give one row for every step, or one");
    guidance_rule out;
    for (std::size_t i = 0; i < weights.size(); ++i) {
        require(weights[i].size() == branches.size(), "row ", i, " of a guidance rule has ",
                weights[i].size(), " weights for ", branches.size(), " branches");
        std::vector<float>& row = out.weights_.emplace_back();
        for (const double w : weights[i]) {
            row.push_back(static_cast<float>(w));
            require(std::isfinite(row.back()), "row ", i, " of a guidance rule holds the weight ",
                    w, ", which is no number to scale with");
        }
        require(std::any_of(row.begin(), row.end(), [](float w) { return w != 0; }), "row ", i,
                " of a guidance rule is zero for every branch; a prediction needs one at least");
    }
    out.branches_ = std::move(branches);
    return out;
}

guidance_rule guidance_rule::classifier_free(double scale) {
    return classifier_free(std::vector<double>{scale});
}

guidance_rule guidance_rule::classifier_free(const std::vector<double>& scales) {
    std::vector<std::vector<double>> weights;
    for (const double scale : scales) weights.push_back({scale, 1 - scale});
    return of({guidance_branch::conditional, guidance_branch::unconditional}, std::move(weights));
}

guidance_rule guidance_rule::image_and_text(double image, double text) {
    return of(
        {guidance_branch::conditional, guidance_branch::image, guidance_branch::unconditional},
        {{text, image - text, 1 - image}});
}

const std::vector<float>& guidance_rule::weights(index_t step) const {
    if (weights_.size() == 1 && step >= 0) return weights_.front();
    require(step >= 0 && step < static_cast<index_t>(weights_.size()),
            "guidance was asked for at denoising step ", step, "; its rule has weights for ",
            weights_.size(), " steps");
    return weights_[static_cast<std::size_t>(step)];
}

std::vector<int> guidance_rule::live_branches(index_t step) const {
    const std::vector<float>& row = weights(step);
    std::vector<int> out;
    for (std::size_t k = 0; k < row.size(); ++k) {
        if (row[k] != 0) out.push_back(static_cast<int>(k));
    }
    return out;
}

std::optional<std::string> guidance_rule::complaint_about(index_t steps) const {
    if (weights_.size() == 1 || static_cast<index_t>(weights_.size()) == steps) return std::nullopt;
    return concat("the guidance rule has weights for ", weights_.size(),
                  " steps, the schedule has ", steps, "; give one row for each, or one for all");
}

std::string guidance_rule::fingerprint() const {
    std::ostringstream out;
    out << std::hexfloat;
    for (const guidance_branch branch : branches_) out << name_of(branch) << ' ';
    for (const auto& row : weights_) {
        out << '|';
        for (const float w : row) out << ' ' << w;
    }
    return std::move(out).str();
}

}  // namespace latpar::inline v0

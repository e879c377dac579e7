// SPDX-License-Identifier: Apache-2.0
#include "check_problem.hpp"

#include <algorithm>

namespace latpar::inline v0::detail {

void check_sampling_type(dtype type) {
    require(type == dtype::f32 || type == dtype::bf16 || type == dtype::f16, "dtype ",
            name_of(type), " cannot be sampled in; use f32, bf16 or f16");
}

dtype narrowed(dtype wire, dtype type) noexcept {
    return size_of(wire) > size_of(type) ? type : wire;
}

void check_problem(const latent_problem& problem, index_t copies) {
    require(problem.batch >= 1 && problem.channels >= 1 && problem.prediction_channels >= 1,
            "a latent of batch ", problem.batch, ", ", problem.channels, " channels and ",
            problem.prediction_channels,
            " prediction channels cannot be sampled; each must be 1 or more");
    require(problem.steps >= 1, problem.steps,
            " denoising steps were asked for; ask for 1 or more");
    for (const axis a : all_axes) {
        require(problem.extents[index_of(a)] >= 1, "the latent's extent along ", name_of(a), " is ",
                problem.extents[index_of(a)], "; it must be 1 or more");
    }
    check_sampling_type(problem.type);
    require(problem.live_history.empty() ||
                static_cast<index_t>(problem.live_history.size()) == problem.steps,
            "the history of ", problem.live_history.size(), " steps was given for ", problem.steps,
            " steps; give one entry a step, or none");
    for (const auto& step : problem.live_history) {
        require(step.size() == problem.live_history.front().size(), "the steps have ",
                problem.live_history.front().size(), " and ", step.size(),
                " history tensors; give one entry for each tensor in every step");
    }
    const double bytes =
        static_cast<double>(problem.batch) * 16.0 * static_cast<double>(copies) *
        static_cast<double>(problem.channels + problem.prediction_channels) *
        static_cast<double>(problem.extents[0]) * static_cast<double>(problem.extents[1]) *
        static_cast<double>(problem.extents[2]) * static_cast<double>(problem.steps);
    require(bytes < 9e18, "a latent of ", box_of(problem.extents), " with ", problem.channels,
            " channels and ", problem.steps, " steps moves more bytes than can be counted");
}

}  // namespace latpar::inline v0::detail

namespace latpar::inline v0 {

std::string latent_problem::fingerprint() const {
    std::string live;
    for (const auto& step : live_history) {
        for (const bool b : step) live += b ? '1' : '0';
        live += '.';
    }
    return detail::concat("latent=", batch, 'x', channels, '(', prediction_channels, ")x",
                          box_of(extents), ' ', name_of(type), " steps=", steps,
                          " elementwise=", elementwise, " noise=", draws_noise, " history=", live);
}

}  // namespace latpar::inline v0

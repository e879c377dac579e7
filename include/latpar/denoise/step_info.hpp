// SPDX-License-Identifier: Apache-2.0
// What a denoiser is told about the call that it is to make.
#pragma once

#include <latpar/core/view.hpp>

#include <span>
#include <string_view>

namespace latpar::inline v0 {

/// Which prediction of classifier-free guidance a sample asks for.
enum class guidance_branch : std::uint8_t {
    guided,         ///< the final prediction, guidance already applied
    conditional,    ///< with the text
    unconditional,  ///< without it
    image,          ///< with the image but without the text, for three-branch guidance
};

[[nodiscard]] constexpr std::string_view name_of(guidance_branch branch) noexcept {
    switch (branch) {
        case guidance_branch::guided:
            return "guided";
        case guidance_branch::conditional:
            return "conditional";
        case guidance_branch::unconditional:
            return "unconditional";
        case guidance_branch::image:
            return "image";
    }
    return "?";
}

/// One sample of the batch: where it stands in the sampling loop.
struct sample_info {
    index_t step = 0;     ///< denoising step, counted from 0
    double timestep = 0;  ///< the scheduler's timestep of that step
    double sigma = 0;     ///< the scheduler's noise level of that step
    guidance_branch branch = guidance_branch::guided;
    /// One timestep for each frame of `window`, for models that denoise frames unevenly; empty:
    /// `timestep` holds for all.
    std::span<const float> frame_timesteps{};
};

/// One call of a denoiser. Spans and views stay valid during the call only.
struct step_info {
    /// One entry for each sample of the batch.
    std::span<const sample_info> samples{};
    /// Where z lies within the global latent: a model may use local or global positions.
    box window{};
    /// (T, H, W) of the global latent.
    extents3 global{};
    /// Further channels that go with z, as image-to-video models take them: [B, C', T, H, W] with
    /// the same window. A policy that cuts z cuts them with the same box. The library's loops pass
    /// none: a model that needs some may keep them whole, and cut them by `window` itself.
    std::span<const const_latent_view> conditions{};
};

}  // namespace latpar::inline v0

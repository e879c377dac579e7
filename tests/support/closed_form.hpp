// SPDX-License-Identifier: Apache-2.0
// The denoiser in closed form that the recorded trajectories were made with.
#pragma once

#include <latpar/denoise/denoiser.hpp>

#include <cmath>

/// f(x, t, ctx) = tanh(1.3 x + 0.2 roll(x, +1, W) - 0.1 roll(x, +1, T)) (0.5 + t / 1000) + 0.05 ctx
///
/// roll(x, +1) is x of the position before, cyclic within the window that the call is given. Each
/// guidance branch has its own ctx; `guided` is u + guidance (c - u). Any batch, float32.
struct closed_form {
    float conditional = 0;
    float unconditional = 0;
    float guidance = 1;

    [[nodiscard]] static latpar::index_t max_batch() { return 1024; }

    void operator()(latpar::const_latent_view z, const latpar::step_info& info,
                    latpar::latent_view prediction, latpar::stream_ref) const {
        latpar::detail::require(
            z.extents == prediction.extents &&
                static_cast<latpar::index_t>(info.samples.size()) == z.extents[0] &&
                latpar::spatial_extents(z) == info.window.extent,
            "the closed form was called with views that do not match its step_info");
        const auto [batch, channels, frames, height, width] = z.extents;
        const float* x = z.as<float>();
        float* out = prediction.as<float>();
        for (latpar::index_t b = 0; b < batch; ++b) {
            const latpar::sample_info& sample = info.samples[static_cast<std::size_t>(b)];
            for (latpar::index_t c = 0; c < channels; ++c)
                for (latpar::index_t t = 0; t < frames; ++t)
                    for (latpar::index_t h = 0; h < height; ++h)
                        for (latpar::index_t w = 0; w < width; ++w) {
                            const float here = x[z.offset({b, c, t, h, w})];
                            const float left = x[z.offset({b, c, t, h, (w + width - 1) % width})];
                            const float before =
                                x[z.offset({b, c, (t + frames - 1) % frames, h, w})];
                            const float inner = 1.3f * here + 0.2f * left - 0.1f * before;
                            const float value =
                                std::tanh(inner) * static_cast<float>(0.5 + sample.timestep / 1000);
                            out[prediction.offset({b, c, t, h, w})] = at(sample.branch, value);
                        }
        }
    }

private:
    [[nodiscard]] float at(latpar::guidance_branch branch, float value) const {
        const float c = value + 0.05f * conditional;
        const float u = value + 0.05f * unconditional;
        switch (branch) {
            case latpar::guidance_branch::guided:
                return u + guidance * (c - u);
            case latpar::guidance_branch::conditional:
                return c;
            case latpar::guidance_branch::unconditional:
                return u;
            case latpar::guidance_branch::image:
                break;
        }
        throw latpar::usage_error("the closed form has no image branch");
    }
};
static_assert(latpar::denoiser<closed_form>);

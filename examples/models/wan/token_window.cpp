// SPDX-License-Identifier: Apache-2.0
// The tokens of a window and where they stand.
#include <wan/token_window.hpp>

#include <algorithm>

namespace wan {
namespace {

using latpar::detail::require;

void check_positions(index_t last, const config& shape, latpar::axis axis) {
    require(last <= shape.rope_max_seq_len, "a window that reaches position ", last, " along ",
            name_of(axis), " is beyond the model's rope_max_seq_len of ", shape.rope_max_seq_len,
            "; use a smaller window or local positions");
}

}  // namespace

token_window place_tokens(const config& shape, const latpar::step_info& info, positions where) {
    token_window out;
    out.window = info.window.extent;
    out.grid = shape.token_grid(out.window);
    out.end = latpar::volume_of(out.grid);
    for (std::size_t i = 0; i < 3; ++i) {
        if (where == positions::global) {
            const index_t begin = info.window.origin[i];
            require(begin >= 0 && begin % shape.patch_size[i] == 0, "the window ", info.window,
                    " does not begin at a whole patch along ", name_of(latpar::all_axes[i]));
            out.origin[i] = begin / shape.patch_size[i];
        }
        check_positions(out.origin[i] + out.grid[i], shape, latpar::all_axes[i]);
    }
    out.conditions.assign(info.conditions.begin(), info.conditions.end());
    require(!info.samples.empty(), "a step_info without samples");
    return out;
}

std::vector<float> timesteps_of(const config& shape, const token_window& at,
                                const latpar::sample_info& sample) {
    std::vector<float> out(sample.frame_timesteps.begin(), sample.frame_timesteps.end());
    if (out.empty()) {
        out.push_back(static_cast<float>(sample.timestep));
    } else {
        require(std::ssize(out) == at.grid[0] && shape.patch_size[0] == 1, out.size(),
                " frame timesteps do not fit a window of ", at.window[0], " frames in patches of ",
                shape.patch_size[0]);
    }
    return out;
}

std::vector<latpar::const_latent_view> embedded_latents(const config& shape, const token_window& at,
                                                        latpar::const_latent_view z,
                                                        index_t samples,
                                                        latpar::memory_space space) {
    std::vector<latpar::const_latent_view> out{z};
    out.insert(out.end(), at.conditions.begin(), at.conditions.end());
    index_t channels = 0;
    for (const latpar::const_latent_view& part : out) {
        channels += part.extents[1];
        require(
            part.extents[0] == samples && spatial_extents(part) == at.window && part.space == space,
            "a latent of batch ", part.extents[0], " and ", latpar::box_of(spatial_extents(part)),
            " in ", name_of(part.space), " memory does not match ", samples,
            " samples in a window of ", latpar::box_of(at.window), " in ", name_of(space),
            " memory");
    }
    require(channels == shape.in_channels, "the model takes ", shape.in_channels,
            " channels, latent and conditions together; got ", channels);
    return out;
}

void check_prediction(const config& shape, const token_window& at,
                      const latpar::latent_view& prediction, index_t samples,
                      latpar::memory_space space) {
    const std::array<index_t, 5> expected{samples, shape.out_channels, at.window[0], at.window[1],
                                          at.window[2]};
    require(prediction.extents == expected && prediction.space == space, "the prediction is to be ",
            name_of(space), " memory of ", shape.out_channels, " channels and ",
            latpar::box_of(at.window), " for ", samples, " samples; got batch ",
            prediction.extents[0], ", ", prediction.extents[1], " channels and ",
            latpar::box_of(spatial_extents(prediction)), " in ", name_of(prediction.space),
            " memory");
}

void check_lent(const config& shape, const token_window& at, const latpar::feature_rows& lent) {
    require(lent.grid[1] == at.grid[1] && lent.grid[2] == at.grid[2],
            "the feature cache holds frames of ", lent.grid[1], 'x', lent.grid[2],
            " tokens, this window has ", at.grid[1], 'x', at.grid[2]);
    check_positions(at.origin[0] + at.grid[0] + lent.grid[0], shape, latpar::axis::t);
}

latpar::feature_rows kept_rows(const config& shape, const token_window& at, index_t first_latent,
                               index_t latents) {
    if (latents == 0) return {};
    const index_t patch = shape.patch_size[0];
    const index_t last = first_latent + latents;
    require(first_latent % patch == 0 && last % patch == 0 && last <= at.window[0],
            "the feature cache is to keep latents [", first_latent, ", ", last,
            "), no whole patches within a window of ", at.window[0]);
    const latpar::extents3 grid{latents / patch, at.grid[1], at.grid[2]};
    const index_t all = latpar::volume_of(grid);
    const index_t origin = first_latent / patch * at.grid[1] * at.grid[2];
    return {grid, std::clamp<index_t>(at.begin - origin, 0, all),
            std::clamp<index_t>(at.end - origin, 0, all), origin, latpar::volume_of(at.grid)};
}

latpar::feature_cache_plan plan_feature_cache(const config& shape, index_t first, index_t last,
                                              std::span<const latpar::guidance_branch> branches,
                                              index_t latents, const latpar::extents3& window,
                                              latpar::dtype type) {
    const latpar::extents3 grid = shape.token_grid({latents, window[1], window[2]});
    return {first,         last, {branches.begin(), branches.end()}, latpar::volume_of(grid),
            shape.width(), type};
}

}  // namespace wan

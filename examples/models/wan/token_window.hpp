// SPDX-License-Identifier: Apache-2.0
// The tokens of a window and where they stand: what a call is, wherever it is computed.
#pragma once

#include <latpar/denoise/feature_cache.hpp>
#include <latpar/denoise/step_info.hpp>

#include <wan/config.hpp>

#include <cstdint>
#include <span>
#include <vector>

namespace wan {

/// Where the first token of a window stands.
enum class positions : std::uint8_t {
    local,   ///< at 0, wherever the window lies
    global,  ///< at the window's origin within the global latent
};

/// A window of latents as tokens, and those of them that are computed here.
struct token_window {
    latpar::extents3 window{};
    latpar::extents3 grid{};    ///< tokens along T, H, W
    latpar::extents3 origin{};  ///< rotary position of the first token
    index_t begin = 0;          ///< tokens [begin, end) are computed here
    index_t end = 0;
    /// Channels that `embed` puts behind those of z; the user's memory.
    std::vector<latpar::const_latent_view> conditions;

    [[nodiscard]] index_t tokens() const noexcept { return end - begin; }
};

/// All tokens of a call's window.
///
/// Errors: usage_error for a window that is not made of whole patches, does not begin at one, or
/// reaches past the positions that the model knows, and for a call without samples.
[[nodiscard]] token_window place_tokens(const config& shape, const latpar::step_info& info,
                                        positions where);

/// The timesteps of a sample: one, or one for each frame.
///
/// Errors: usage_error unless there is one for each frame of the window.
[[nodiscard]] std::vector<float> timesteps_of(const config& shape, const token_window& at,
                                              const latpar::sample_info& sample);

/// z and the conditions, whose channels follow each other.
///
/// Errors: usage_error unless they have the window and the model's channels for `samples` samples,
/// in memory of `space`.
[[nodiscard]] std::vector<latpar::const_latent_view> embedded_latents(const config& shape,
                                                                      const token_window& at,
                                                                      latpar::const_latent_view z,
                                                                      index_t samples,
                                                                      latpar::memory_space space);

/// Errors: usage_error unless a prediction fits the window and the model.
void check_prediction(const config& shape, const token_window& at,
                      const latpar::latent_view& prediction, index_t samples,
                      latpar::memory_space space);

/// Errors: usage_error unless rows of another window can stand behind the window's last frame.
void check_lent(const config& shape, const token_window& at, const latpar::feature_rows& lent);

/// The rows that a feature cache keeps of this window, as far as they are computed here.
///
/// Errors: usage_error unless those latents are whole patches within the window.
[[nodiscard]] latpar::feature_rows kept_rows(const config& shape, const token_window& at,
                                             index_t first_latent, index_t latents);

/// The cache for layers [first, last) that keeps `latents` latent frames of a window.
///
/// Errors: usage_error unless those are whole patches.
[[nodiscard]] latpar::feature_cache_plan plan_feature_cache(
    const config& shape, index_t first, index_t last,
    std::span<const latpar::guidance_branch> branches, index_t latents,
    const latpar::extents3& window, latpar::dtype type);

}  // namespace wan

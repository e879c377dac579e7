// SPDX-License-Identifier: Apache-2.0
// The shape of a Wan 2.1 transformer, from the JSON that goes with its weights.
#pragma once

#include <latpar/core/box.hpp>

#include <cstddef>
#include <string_view>

namespace wan {

using latpar::index_t;

/// The hyper-parameters under the names of the diffusers library.
struct config {
    latpar::extents3 patch_size{1, 2, 2};
    index_t num_attention_heads = 0;
    index_t attention_head_dim = 0;
    index_t in_channels = 0;
    index_t out_channels = 0;
    index_t text_dim = 0;
    index_t freq_dim = 0;
    index_t ffn_dim = 0;
    index_t num_layers = 0;
    index_t rope_max_seq_len = 1024;
    float eps = 1e-6f;

    [[nodiscard]] index_t width() const noexcept {
        return num_attention_heads * attention_head_dim;
    }
    [[nodiscard]] index_t patch_volume() const noexcept { return latpar::volume_of(patch_size); }
    /// Tokens along T, H, W of a latent window.
    ///
    /// Errors: usage_error if the window does not consist of whole patches.
    [[nodiscard]] latpar::extents3 token_grid(const latpar::extents3& window) const;
    /// Rotary pairs of a head that turn with T, H, W.
    [[nodiscard]] latpar::extents3 rotary_pairs() const noexcept;
    /// The angle by which such a pair of an axis turns at a position along it.
    [[nodiscard]] double rotary_angle(std::size_t axis, index_t pair,
                                      index_t position) const noexcept;
    /// By which the time embedding multiplies times: wave i of freq_dim / 2.
    [[nodiscard]] float time_frequency(index_t i) const noexcept;
    /// Floating-point operations of one prediction, as 2 x multiplications of its matrices.
    [[nodiscard]] double operations(index_t tokens, index_t text_tokens) const noexcept;

    friend bool operator==(const config&, const config&) = default;
};

/// Errors: io_error, beginning with `where`, for a missing or impossible value and for variants of
/// the model that this implementation does not compute.
[[nodiscard]] config parse_config(std::string_view json, std::string_view where);

}  // namespace wan

// SPDX-License-Identifier: Apache-2.0
// One call of a transformer whose tokens lie on several ranks, planned.
#pragma once

#include <latpar/core/box.hpp>
#include <latpar/layer/usp_plan.hpp>

#include <string_view>
#include <vector>

namespace latpar::inline v0::layer {

/// A transformer as sequence parallelism sees it.
struct transformer_shape {
    attention_shape attention;
    index_t layers = 1;
    extents3 patch{1, 2, 2};  ///< latent positions of a token along (T, H, W)
    /// Numbers that a token ends with, of `output_type`, which all ranks get; 0: none do.
    index_t output_columns = 0;
    dtype output_type = dtype::f32;
    index_t joint_front = 0;  ///< joint tokens, the text of MM-DiT models, in front of the latent's
    index_t joint_back = 0;

    friend bool operator==(const transformer_shape&, const transformer_shape&) = default;
};

/// What travels in one call for one sample: the self-attention of every layer, and the output.
struct forward_plan {
    transformer_shape shape;
    usp_plan attention;

    /// Payload bytes that a rank sends along "ulysses" or "ring".
    [[nodiscard]] index_t bytes_sent_by(int rank, std::string_view axis) const;
    [[nodiscard]] index_t bytes(std::string_view axis) const;
    [[nodiscard]] index_t bytes() const { return bytes("ulysses") + bytes("ring"); }
    /// What the attention takes on a rank: layers take turns, so that of one counts.
    [[nodiscard]] index_t workspace_bytes(int rank) const {
        return attention.workspace_bytes(rank);
    }
};

/// Plans a call on a latent of `window` extents, its tokens spread evenly, with the key-only rows
/// of each rank in every layer's k and v.
///
/// Errors: usage_error if the patch does not divide the window, and as plan_usp.
[[nodiscard]] forward_plan plan_forward(const transformer_shape& shape, const extents3& window,
                                        int ulysses_ranks, int ring_ranks,
                                        std::vector<index_t> key_only = {});

}  // namespace latpar::inline v0::layer

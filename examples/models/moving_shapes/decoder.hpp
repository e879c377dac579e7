// SPDX-License-Identifier: Apache-2.0
// From a latent of the moving-shapes model to pixels.
#pragma once

#include <latpar/core/view.hpp>
#include <latpar/io/safetensors.hpp>

#include <generate/media.hpp>

#include <vector>

namespace moving_shapes {

/// The model's latent decoder: a linear map from each latent position to a block of pixels.
class decoder {
public:
    /// Reads `latent.decode.weight`, `latent.decode.bias` and the metadata key `latent`.
    ///
    /// Errors: io_error for a tensor that is missing or does not fit the others.
    [[nodiscard]] static decoder load(const latpar::safetensors_file& weights);

    [[nodiscard]] latpar::index_t channels() const noexcept { return channels_; }
    /// Pixels along each side of the block of one latent position.
    [[nodiscard]] latpar::index_t block() const noexcept { return block_; }

    /// Memory: z is [1, C, T, H, W] in host memory, float32, any strides.
    /// Errors: usage_error for any other z.
    [[nodiscard]] media::rgb_video decode(latpar::const_latent_view z) const;

private:
    decoder() = default;

    latpar::index_t channels_ = 0;
    latpar::index_t block_ = 0;
    std::vector<float> weight_;  // [block, block, 3, channels]
    std::vector<float> bias_;    // [block, block, 3]
};

}  // namespace moving_shapes

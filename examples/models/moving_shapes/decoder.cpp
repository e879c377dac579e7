// SPDX-License-Identifier: Apache-2.0
// The latent decoder of the moving-shapes model.
#include <models/moving_shapes/decoder.hpp>
#include <models/moving_shapes/metadata.hpp>

#include <algorithm>
#include <cmath>

namespace moving_shapes {

using namespace latpar;

decoder decoder::load(const safetensors_file& weights) {
    const auto about = metadata_object(weights, "latent");
    decoder out;
    out.block_ = member<index_t>(about, "block", weights);
    out.channels_ = member<index_t>(about, "channels", weights);
    detail::require<io_error>(out.block_ > 0 && out.channels_ > 0, weights.path(), ": a latent of ",
                              out.channels_, " channels with blocks of ", out.block_,
                              " pixels cannot be decoded");
    const index_t rows = out.block_ * out.block_ * 3;
    const auto& weight = weights.at("latent.decode.weight");
    const auto& bias = weights.at("latent.decode.bias");
    detail::require<io_error>(weight.shape == std::vector{rows, out.channels_}, weights.path(),
                              ": latent.decode.weight must be [", rows, ", ", out.channels_, "]");
    detail::require<io_error>(bias.shape == std::vector{rows}, weights.path(),
                              ": latent.decode.bias must be [", rows, "]");
    out.weight_ = to_float32(weight);
    out.bias_ = to_float32(bias);
    return out;
}

media::rgb_video decoder::decode(const_latent_view z) const {
    detail::require(z.space == memory_space::host, "a latent is decoded on the host, not in ",
                    name_of(z.space), " memory; copy it first");
    detail::require(z.extents[0] == 1 && z.extents[1] == channels_, "a latent of ", z.extents[0],
                    " samples and ", z.extents[1], " channels cannot be decoded; it takes 1 and ",
                    channels_);
    const float* const elements = z.as<float>();
    const auto [frames, height, width] = spatial_extents(z);
    media::rgb_video out{frames, height * block_, width * block_, {}};
    out.data.resize(static_cast<std::size_t>(frames * out.height * out.width * 3));
    const index_t block_row = block_ * 3;
    for (index_t t = 0; t < frames; ++t) {
        for (index_t h = 0; h < height; ++h) {
            for (index_t w = 0; w < width; ++w) {
                const float* const position = elements + z.offset({0, 0, t, h, w});
                for (index_t row = 0; row < block_ * block_row; ++row) {
                    float value = bias_[static_cast<std::size_t>(row)];
                    for (index_t c = 0; c < channels_; ++c) {
                        value += weight_[static_cast<std::size_t>(row * channels_ + c)] *
                                 position[c * z.strides[1]];
                    }
                    const index_t y = (t * height + h) * block_ + row / block_row;
                    const index_t at = (y * width + w) * block_row + row % block_row;
                    out.data[static_cast<std::size_t>(at)] = static_cast<std::uint8_t>(
                        std::lround((std::clamp(value, -1.0f, 1.0f) + 1.0f) * 127.5f));
                }
            }
        }
    }
    return out;
}

}  // namespace moving_shapes

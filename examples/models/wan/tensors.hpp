// SPDX-License-Identifier: Apache-2.0
// The tensors of a Wan 2.1 transformer: what a file calls them, and where weights point to them.
#pragma once

#include <wan/weights.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace wan {

/// What a tensor is to the model.
enum class tensor_role : std::uint8_t { matrix, bias, scale };

/// A tensor that a checkpoint of a configuration has.
struct tensor_info {
    std::string name;            ///< of the diffusers library
    std::vector<index_t> shape;  ///< in the file; a matrix has its outputs first
    tensor_role role{};
    bool is_loaded = false;  ///< it belongs to the layers that are wanted

    [[nodiscard]] index_t elements() const noexcept {
        index_t out = 1;
        for (const index_t extent : shape) out *= extent;
        return out;
    }
    /// Small random weights are in [centre - spread, centre + spread).
    [[nodiscard]] float random_centre() const noexcept {
        return role == tensor_role::scale ? 1.0f : 0.0f;
    }
    [[nodiscard]] float random_spread() const {
        if (role != tensor_role::matrix) return 0.2f;
        return 1.7f / std::sqrt(static_cast<float>(elements() / shape[0]));
    }
};

/// Calls `visit(info, pointer)` for every tensor of the model, in the order in which weights lie in
/// memory; `pointer` is a reference to where the weights keep its address. Linear layers that are
/// loaded learn their sizes.
template <class Weights, class Visit>
void for_each_tensor(Weights& all, const Visit& visit) {
    const config& c = all.config;
    const index_t w = c.width();
    bool is_loaded = true;
    const auto tensor = [&](std::string name, auto& pointer, tensor_role role,
                            std::vector<index_t> shape) {
        visit(tensor_info{std::move(name), std::move(shape), role, is_loaded}, pointer);
    };
    const auto linear = [&](const std::string& name, auto& layer, std::vector<index_t> shape) {
        const tensor_info weight{name + ".weight", std::move(shape), tensor_role::matrix,
                                 is_loaded};
        const index_t out = weight.shape[0];
        if constexpr (!std::is_const_v<Weights>) {
            if (is_loaded) {
                layer.in = weight.elements() / out;
                layer.out = out;
            }
        }
        visit(weight, layer.weight);
        tensor(name + ".bias", layer.bias, tensor_role::bias, {out});
    };
    const auto attention = [&](const std::string& name, auto& layer) {
        linear(name + "to_q", layer.q, {w, w});
        linear(name + "to_k", layer.k, {w, w});
        linear(name + "to_v", layer.v, {w, w});
        linear(name + "to_out.0", layer.out, {w, w});
        tensor(name + "norm_q.weight", layer.norm_q, tensor_role::scale, {w});
        tensor(name + "norm_k.weight", layer.norm_k, tensor_role::scale, {w});
    };

    is_loaded = all.layers.first == 0;
    const auto& [pt, ph, pw] = c.patch_size;
    linear("patch_embedding", all.patch, {w, c.in_channels, pt, ph, pw});
    is_loaded = true;
    linear("condition_embedder.time_embedder.linear_1", all.time_1, {w, c.freq_dim});
    linear("condition_embedder.time_embedder.linear_2", all.time_2, {w, w});
    linear("condition_embedder.time_proj", all.time_projection, {6 * w, w});
    linear("condition_embedder.text_embedder.linear_1", all.text_1, {w, c.text_dim});
    linear("condition_embedder.text_embedder.linear_2", all.text_2, {w, w});
    is_loaded = all.layers.last == c.num_layers;
    tensor("scale_shift_table", all.head_modulation, tensor_role::bias, {1, 2, w});
    linear("proj_out", all.head, {c.out_channels * c.patch_volume(), w});
    for (index_t i = 0; i < c.num_layers; ++i) {
        is_loaded = all.layers.first <= i && i < all.layers.last;
        auto& block = all.blocks[static_cast<std::size_t>(i)];
        const std::string name = "blocks." + std::to_string(i) + '.';
        attention(name + "attn1.", block.self);
        attention(name + "attn2.", block.cross);
        tensor(name + "norm2.weight", block.norm2_weight, tensor_role::scale, {w});
        tensor(name + "norm2.bias", block.norm2_bias, tensor_role::bias, {w});
        linear(name + "ffn.net.0.proj", block.ffn_up, {c.ffn_dim, w});
        linear(name + "ffn.net.2", block.ffn_down, {w, c.ffn_dim});
        tensor(name + "scale_shift_table", block.modulation, tensor_role::bias, {1, 6, w});
    }
}

}  // namespace wan

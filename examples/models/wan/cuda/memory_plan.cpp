// SPDX-License-Identifier: Apache-2.0
// What an instance of the transformer takes on a GPU, before there is one.
#include <wan/cuda/memory_plan.hpp>

#include <algorithm>

namespace wan::cuda {

memory_plan plan_memory(const config& shape, const memory_request& wanted, latpar::dtype type,
                        index_t workspace_bytes) {
    const index_t size = latpar::size_of(type);
    const index_t last = wanted.layers.last < 0 ? shape.num_layers : wanted.layers.last;
    const index_t w = shape.width();
    const index_t tokens = latpar::volume_of(shape.token_grid(wanted.window));
    index_t lent = 0;
    if (wanted.lent_latents > 0) {
        lent = latpar::volume_of(
            shape.token_grid({wanted.lent_latents, wanted.window[1], wanted.window[2]}));
    }

    memory_plan out;
    out.weights = weight_bytes(shape, type, wanted.layers);
    out.text = wanted.text_tokens * w * (1 + 2 * (last - wanted.layers.first)) * size;
    // Queries, outputs and what matrices are multiplied with; keys and values; the widest rows.
    index_t widest = shape.ffn_dim;
    if (wanted.layers.first == 0) {
        widest = std::max(widest, shape.in_channels * shape.patch_volume());
    }
    out.activations = (3 * tokens * w + 2 * (tokens + lent) * w + tokens * widest) * size;
    constexpr auto exact = static_cast<index_t>(sizeof(float));
    if (!wanted.in_stages) out.activations += tokens * w * exact;
    if (last == shape.num_layers) {
        out.activations += tokens * shape.patch_volume() * shape.out_channels * exact;
    }
    out.scratch = workspace_bytes;
    return out;
}

}  // namespace wan::cuda

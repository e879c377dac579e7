// SPDX-License-Identifier: Apache-2.0
// What an instance of the transformer takes, before there is one.
#include <wan/executor.hpp>
#include <wan/memory_plan.hpp>

#include <algorithm>

namespace wan {

memory_plan begin_plan(const config& shape, const memory_request& wanted, latpar::dtype type) {
    constexpr auto exact = static_cast<index_t>(sizeof(float));
    const index_t size = latpar::size_of(type);
    const layer_range layers = chosen_layers(shape, wanted.layers);
    const index_t w = shape.width();
    const index_t tokens = latpar::volume_of(shape.token_grid(wanted.window));
    index_t lent = 0;
    if (wanted.lent_latents > 0) {
        lent = latpar::volume_of(
            shape.token_grid({wanted.lent_latents, wanted.window[1], wanted.window[2]}));
    }

    memory_plan out;
    out.text = wanted.text_tokens * w * (1 + 2 * (layers.last - layers.first)) * size;
    // Queries and outputs; keys and values.
    out.activations = (2 * tokens + 2 * (tokens + lent)) * w * size;
    if (!wanted.in_stages) out.activations += tokens * w * exact;
    if (layers.last == shape.num_layers) {
        out.activations += tokens * shape.patch_volume() * shape.out_channels * exact;
    }
    return out;
}

memory_plan plan_memory(const config& shape, const memory_request& wanted) {
    memory_plan out = begin_plan(shape, wanted, executor::type());
    out.weights = weight_bytes(shape, wanted.layers);
    // What follows self-attention needs the most: two blocks of rows, and cross-attention's own.
    index_t floats = row_block * (shape.width() + std::max(shape.width(), shape.ffn_dim)) +
                     attention_scratch(shape.attention_head_dim);
    if (wanted.layers.first == 0) {
        floats = std::max(floats, row_block * shape.in_channels * shape.patch_volume());
    }
    latpar::detail::require(wanted.threads >= 1, "memory was planned for ", wanted.threads,
                            " threads; name how many the executor has");
    out.scratch = executor::scratch_bytes(floats, wanted.threads);
    return out;
}

}  // namespace wan

// SPDX-License-Identifier: Apache-2.0
// What an instance of the transformer takes on a GPU, before there is one.
#include <wan/cuda/memory_plan.hpp>

#include <algorithm>

namespace wan::cuda {

memory_plan plan_memory(const config& shape, const memory_request& wanted, latpar::dtype type,
                        index_t workspace_bytes) {
    memory_plan out = begin_plan(shape, wanted, type);
    out.weights = weight_bytes(shape, type, wanted.layers);
    // What matrices are multiplied with, and the widest rows.
    index_t widest = shape.ffn_dim;
    if (wanted.layers.first == 0) {
        widest = std::max(widest, shape.in_channels * shape.patch_volume());
    }
    const index_t tokens = latpar::volume_of(shape.token_grid(wanted.window));
    out.activations += tokens * (shape.width() + widest) * latpar::size_of(type);
    out.scratch = workspace_bytes;
    return out;
}

}  // namespace wan::cuda

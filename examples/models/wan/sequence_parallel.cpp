// SPDX-License-Identifier: Apache-2.0
// The model as sequence parallelism plans it.
#include <wan/sequence_parallel.hpp>

namespace wan {

latpar::layer::transformer_shape transformer_shape_of(const config& shape, latpar::dtype type) {
    latpar::layer::transformer_shape out;
    out.attention = {shape.num_attention_heads, shape.num_attention_heads, shape.attention_head_dim,
                     type, true};
    out.layers = shape.num_layers;
    out.patch = shape.patch_size;
    out.output_columns = shape.patch_volume() * shape.out_channels;
    return out;
}

std::vector<index_t> lent_rows(const latpar::feature_rows& lent, int ranks) {
    latpar::detail::require(lent.window_tokens > 0 || latpar::volume_of(lent.grid) == 0,
                            "a feature cache lends ", latpar::volume_of(lent.grid),
                            " tokens of a window that it does not know; begin its entries with "
                            "origin and window_tokens");
    return latpar::layer::tokens_within(latpar::layer::even_tokens(lent.window_tokens, ranks),
                                        {lent.origin, lent.origin + latpar::volume_of(lent.grid)});
}

}  // namespace wan

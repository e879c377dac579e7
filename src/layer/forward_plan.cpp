// SPDX-License-Identifier: Apache-2.0
// One call of a transformer whose tokens lie on several ranks, planned.
#include <latpar/layer/forward_plan.hpp>

#include <utility>

namespace latpar::inline v0::layer {

using latpar::detail::require;

forward_plan plan_forward(const transformer_shape& shape, const extents3& window, int ulysses_ranks,
                          int ring_ranks, std::vector<index_t> key_only) {
    require(shape.layers >= 1 && shape.output_columns >= 0, "a transformer of ", shape.layers,
            " layers with ", shape.output_columns,
            " output columns was planned; use 1 or more layers and 0 or more columns");
    index_t tokens = 1;
    for (const axis a : all_axes) {
        const index_t extent = window[index_of(a)];
        const index_t patch = shape.patch[index_of(a)];
        require(patch >= 1 && extent >= 0 && extent % patch == 0, "the extent ", extent, " along ",
                name_of(a), " is not a multiple of the patch ", patch);
        tokens *= extent / patch;
    }
    require(ulysses_ranks >= 1 && ring_ranks >= 1, "a mesh of ulysses=", ulysses_ranks,
            ",ring=", ring_ranks, " was planned; each must be 1 or more");
    return {shape, plan_usp(shape.attention,
                            {even_tokens(tokens, ulysses_ranks * ring_ranks),
                             shape.joint_front,
                             shape.joint_back,
                             {},
                             std::move(key_only)},
                            ulysses_ranks, ring_ranks)};
}

index_t forward_plan::bytes_sent_by(int rank, std::string_view axis) const {
    const ulysses_plan& row = attention.row_of(rank);
    const ring_plan& ring = attention.ring_of(rank);
    const int in_row = rank % attention.ulysses_ranks;
    const index_t output = shape.output_columns * size_of(shape.output_type);
    if (axis == "ulysses") {
        return shape.layers * row.bytes_sent_by(in_row) +
               (attention.ulysses_ranks - 1) * row.tokens_of(in_row) * output;
    }
    require(axis == "ring", "the axis ", axis, " has no layer policy; use ulysses or ring");
    const index_t own = row.all_tokens() - shape.joint_front - shape.joint_back;
    return shape.layers * ring.bytes_sent_by(rank / attention.ulysses_ranks) +
           (attention.ring_ranks - 1) * own * output;
}

index_t forward_plan::bytes(std::string_view axis) const {
    index_t out = 0;
    for (int rank = 0; rank < attention.ranks(); ++rank) out += bytes_sent_by(rank, axis);
    return out;
}

}  // namespace latpar::inline v0::layer

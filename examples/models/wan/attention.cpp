// SPDX-License-Identifier: Apache-2.0
// Attention on one rank.
#include <wan/attention.hpp>

#include <cmath>

namespace wan {
namespace {

using latpar::detail::require;

template <class View>
auto* floats_of(const View& view, const char* name) {
    require(view.space == latpar::memory_space::host && view.strides[2] == 1, "attention: ", name,
            " must be host memory with a dense head dimension");
    return view.template as<float>();
}

}  // namespace

void local_attention::operator()(const_heads_view q, const_heads_view k, const_heads_view v,
                                 heads_view out, lse_view lse, latpar::stream_ref) {
    const index_t queries = q.extents[0];
    const index_t heads = q.extents[1];
    const index_t head_dim = q.extents[2];
    const index_t keys = k.extents[0];
    const index_t key_heads = k.extents[1];
    require(out.extents == q.extents && v.extents == k.extents && k.extents[2] == head_dim,
            "attention: q and out are [tokens, heads, head_dim], k and v [tokens, heads, head_dim] "
            "with the same head_dim; got q ",
            queries, 'x', heads, 'x', head_dim, " and k ", keys, 'x', key_heads, 'x', k.extents[2]);
    require(key_heads > 0 && heads % key_heads == 0, "attention: ", heads,
            " query heads cannot share ", key_heads, " key heads evenly");
    attention_tile whole{};
    whole.q = floats_of(q, "q");
    whole.k = floats_of(k, "k");
    whole.v = floats_of(v, "v");
    whole.out = floats_of(out, "out");
    whole.q_stride = q.strides[0];
    whole.k_stride = k.strides[0];
    whole.v_stride = v.strides[0];
    whole.out_stride = out.strides[0];
    whole.keys = keys;
    whole.head_dim = head_dim;
    whole.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    if (lse.data) {
        require(lse.extents[0] == queries && lse.extents[1] == heads,
                "attention: lse is [tokens, heads] of the queries; got ", lse.extents[0], 'x',
                lse.extents[1]);
        whole.lse = lse.as<float>();
        whole.lse_stride = lse.strides[0];
    }

    const index_t group = heads / key_heads;
    const index_t blocks = (queries + row_block - 1) / row_block;
    executor_->run(heads * blocks, attention_scratch(head_dim), [&](index_t task, float* scratch) {
        // Neighbouring tasks share a head, whose keys and values then stay in the cache.
        const index_t head = task / blocks;
        const index_t first = task % blocks * row_block;
        attention_tile tile = whole;
        tile.q += first * tile.q_stride + head * q.strides[1];
        tile.k += head / group * k.strides[1];
        tile.v += head / group * v.strides[1];
        tile.out += first * tile.out_stride + head * out.strides[1];
        if (tile.lse) tile.lse += first * tile.lse_stride + head * lse.strides[1];
        tile.queries = std::min<index_t>(row_block, queries - first);
        tile.scratch = scratch;
        executor_->kernels().attend(tile);
    });
}

}  // namespace wan

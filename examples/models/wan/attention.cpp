// SPDX-License-Identifier: Apache-2.0
// Attention on one rank.
#include <wan/attention.hpp>

#include <cmath>

namespace wan {

void check_attention(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                     lse_view lse, latpar::dtype type, latpar::memory_space space) {
    using latpar::detail::require;
    const index_t heads = q.extents[1];
    const index_t key_heads = k.extents[1];
    require(out.extents == q.extents && v.extents == k.extents && k.extents[2] == q.extents[2],
            "attention: q and out are [tokens, heads, head_dim], k and v [tokens, heads, head_dim] "
            "with the same head_dim; got q ",
            q.extents[0], 'x', heads, 'x', q.extents[2], " and k ", k.extents[0], 'x', key_heads,
            'x', k.extents[2]);
    require(key_heads > 0 && heads % key_heads == 0, "attention: ", heads,
            " query heads cannot share ", key_heads, " key heads evenly");
    const auto check_view = [&](const const_heads_view& view, const char* name) {
        require(view.space == space && view.strides[2] == 1 && view.type == type,
                "attention: ", name, " must be ", name_of(space), " memory of ", name_of(type),
                " with a dense head dimension; got ", name_of(view.space), " memory of ",
                name_of(view.type), " with a stride of ", view.strides[2]);
    };
    check_view(q, "q");
    check_view(k, "k");
    check_view(v, "v");
    check_view(out, "out");
    require(!lse.data ||
                (lse.extents[0] == q.extents[0] && lse.extents[1] == heads && lse.space == space),
            "attention: lse is [tokens, heads] of the queries in ", name_of(space), " memory; got ",
            lse.extents[0], 'x', lse.extents[1], " in ", name_of(lse.space), " memory");
}

void local_attention::operator()(const_heads_view q, const_heads_view k, const_heads_view v,
                                 heads_view out, lse_view lse, latpar::stream_ref) {
    check_attention(q, k, v, out, lse, executor::type(), latpar::memory_space::host);
    const index_t queries = q.extents[0];
    const index_t heads = q.extents[1];
    const index_t head_dim = q.extents[2];
    const index_t key_heads = k.extents[1];
    attention_tile whole{};
    whole.q = q.as<float>();
    whole.k = k.as<float>();
    whole.v = v.as<float>();
    whole.out = out.as<float>();
    whole.q_stride = q.strides[0];
    whole.k_stride = k.strides[0];
    whole.v_stride = v.strides[0];
    whole.out_stride = out.strides[0];
    whole.keys = k.extents[0];
    whole.head_dim = head_dim;
    whole.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    if (lse.data) {
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
        // Without keys there may be no memory to point into.
        if (tile.keys > 0) {
            tile.k += head / group * k.strides[1];
            tile.v += head / group * v.strides[1];
        }
        tile.out += first * tile.out_stride + head * out.strides[1];
        if (tile.lse) tile.lse += first * tile.lse_stride + head * lse.strides[1];
        tile.queries = std::min<index_t>(row_block, queries - first);
        tile.scratch = scratch;
        executor_->kernels().attend(tile);
    });
}

}  // namespace wan

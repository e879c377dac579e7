// SPDX-License-Identifier: Apache-2.0
// Attention on one GPU.
#include <wan/cuda/attention.hpp>
#include <wan/cuda/kernels.hpp>

#include <cmath>

namespace wan::cuda {
namespace {

using latpar::dtype;
using latpar::detail::require;

template <class View>
void check_view(const View& view, dtype type, const char* name) {
    require(view.space == latpar::memory_space::cuda && view.strides[2] == 1 && view.type == type,
            "attention: ", name, " must be device memory of ", name_of(type),
            " with a dense head dimension; got ", name_of(view.space), " memory of ",
            name_of(view.type), " with a stride of ", view.strides[2]);
}

}  // namespace

void attention::operator()(const_heads_view q, const_heads_view k, const_heads_view v,
                           heads_view out, lse_view lse, latpar::stream_ref stream) const {
    const index_t heads = q.extents[1];
    const index_t head_dim = q.extents[2];
    const index_t key_heads = k.extents[1];
    require(out.extents == q.extents && v.extents == k.extents && k.extents[2] == head_dim,
            "attention: q and out are [tokens, heads, head_dim], k and v [tokens, heads, head_dim] "
            "with the same head_dim; got q ",
            q.extents[0], 'x', heads, 'x', head_dim, " and k ", k.extents[0], 'x', key_heads, 'x',
            k.extents[2]);
    require(key_heads > 0 && heads % key_heads == 0, "attention: ", heads,
            " query heads cannot share ", key_heads, " key heads evenly");
    require(head_dim >= 1 && head_dim <= largest_head, "attention: a head of ", head_dim,
            " was passed; on a GPU heads of up to ", largest_head, " are computed");
    require(q.type == dtype::f32 || q.type == dtype::bf16,
            "attention: on a GPU it is computed in f32 or bf16, not in ", name_of(q.type));
    check_view(q, q.type, "q");
    check_view(k, q.type, "k");
    check_view(v, q.type, "v");
    check_view(out, q.type, "out");

    attention_task task{};
    task.q = q.data;
    task.k = k.data;
    task.v = v.data;
    task.out = out.data;
    task.type = q.type;
    task.queries = q.extents[0];
    task.keys = k.extents[0];
    task.heads = heads;
    task.group = heads / key_heads;
    task.head_dim = head_dim;
    task.q_token = q.strides[0];
    task.q_head = q.strides[1];
    task.k_token = k.strides[0];
    task.k_head = k.strides[1];
    task.v_token = v.strides[0];
    task.v_head = v.strides[1];
    task.out_token = out.strides[0];
    task.out_head = out.strides[1];
    task.is_common = which_ == kernels::common;
    task.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    if (lse.data) {
        require(lse.extents[0] == q.extents[0] && lse.extents[1] == heads &&
                    lse.space == latpar::memory_space::cuda,
                "attention: lse is [tokens, heads] of the queries in device memory; got ",
                lse.extents[0], 'x', lse.extents[1], " in ", name_of(lse.space), " memory");
        task.lse = lse.as<float>();
        task.lse_token = lse.strides[0];
        task.lse_head = lse.strides[1];
    }
    attend(task, stream);
}

}  // namespace wan::cuda

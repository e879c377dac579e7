// SPDX-License-Identifier: Apache-2.0
// The kernels that attention on a GPU chooses from.
#pragma once

#include <latpar/core/view.hpp>

namespace wan::cuda {

using latpar::index_t;

/// out = softmax(scale q k^T) v for every query over every key; strides count elements.
struct attention_task {
    const void* q;
    const void* k;
    const void* v;
    void* out;
    float* lse = nullptr;  ///< null: not wanted
    index_t queries, keys, heads, group, head_dim;
    index_t q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head;
    index_t lse_token = 0, lse_head = 0;
    float scale;
};

// All are for at least one query and head, and heads of up to `largest_head` elements.

/// In float32.
void attend_plain(const attention_task& task, latpar::stream_ref stream);

/// In bfloat16. `is_aligned`: memory, strides and heads (of q, k, v and out) are of whole 16 bytes.
void attend_tensor(const attention_task& task, bool is_aligned, latpar::stream_ref stream);

/// In bfloat16, for at least one key and such memory, on a device of compute capability 9.0.
void attend_hopper(const attention_task& task, latpar::stream_ref stream);

}  // namespace wan::cuda

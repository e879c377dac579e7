// SPDX-License-Identifier: Apache-2.0
// Attention on one GPU.
#include <wan/cuda/attention.hpp>
#include <wan/cuda/attention_kernels.hpp>
#include <wan/cuda/check.hpp>

#include <cmath>
#include <cstdint>

namespace wan::cuda {
namespace {

// Whether all heads can be copied by 16 bytes.
bool is_aligned(const attention_task& task) {
    bool out = task.head_dim % 8 == 0;
    for (const void* data : {task.q, task.k, task.v, static_cast<const void*>(task.out)}) {
        out = out && reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
    }
    for (const index_t stride : {task.q_token, task.q_head, task.k_token, task.k_head, task.v_token,
                                 task.v_head, task.out_token, task.out_head}) {
        out = out && stride % 8 == 0;
    }
    return out;
}

#if defined(WAN_CUDA_HOPPER)
bool is_hopper() {
    int device = 0;
    int major = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "asking for the compute capability");
    return major == 9;
}
#endif

void attend_in_bf16(const attention_task& task, [[maybe_unused]] attention::kernels which,
                    latpar::stream_ref stream) {
    const bool aligned = is_aligned(task);
#if defined(WAN_CUDA_HOPPER)
    if (aligned && task.head_dim > 32 && task.keys > 0 && which == attention::kernels::best &&
        is_hopper()) {
        attend_hopper(task, stream);
        return;
    }
#endif
    attend_tensor(task, aligned, stream);
}

}  // namespace

void attention::operator()(const_heads_view q, const_heads_view k, const_heads_view v,
                           heads_view out, lse_view lse, latpar::stream_ref stream) const {
    using latpar::dtype;
    using latpar::detail::require;
    const index_t heads = q.extents[1];
    const index_t head_dim = q.extents[2];
    require(head_dim >= 1 && head_dim <= largest_head, "attention: a head of ", head_dim,
            " was passed; on a GPU heads of up to ", largest_head, " are computed");
    require(q.type == dtype::f32 || q.type == dtype::bf16,
            "attention: on a GPU it is computed in f32 or bf16, not in ", name_of(q.type));
    check_attention(q, k, v, out, lse, q.type, latpar::memory_space::cuda);

    attention_task task{};
    task.q = q.data;
    task.k = k.data;
    task.v = v.data;
    task.out = out.data;
    task.queries = q.extents[0];
    task.keys = k.extents[0];
    task.heads = heads;
    task.group = heads / k.extents[1];
    task.head_dim = head_dim;
    task.q_token = q.strides[0];
    task.q_head = q.strides[1];
    task.k_token = k.strides[0];
    task.k_head = k.strides[1];
    task.v_token = v.strides[0];
    task.v_head = v.strides[1];
    task.out_token = out.strides[0];
    task.out_head = out.strides[1];
    task.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    if (lse.data) {
        task.lse = lse.as<float>();
        task.lse_token = lse.strides[0];
        task.lse_head = lse.strides[1];
    }
    if (task.queries == 0 || task.heads == 0) return;
    require(heads <= 65535, "attention over ", heads,
            " heads was asked for; a launch has up to 65535");
    if (q.type == dtype::f32) {
        attend_plain(task, stream);
    } else {
        attend_in_bf16(task, which_, stream);
    }
    check(cudaGetLastError(), "attention");
}

}  // namespace wan::cuda

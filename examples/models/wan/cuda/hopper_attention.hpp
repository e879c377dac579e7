// SPDX-License-Identifier: Apache-2.0
// Attention in bfloat16 on Hopper.
#pragma once

#include <wan/cuda/kernels.hpp>

namespace wan::cuda {

/// As `attend`, for at least one key, heads of up to 128 elements, and memory and strides (of q, k,
/// v and out) of whole 16 bytes, on a device of compute capability 9.0.
void attend_hopper(const attention_task& task, latpar::stream_ref stream);

}  // namespace wan::cuda

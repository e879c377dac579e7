// SPDX-License-Identifier: Apache-2.0
// What an instance of the transformer takes on a GPU, before there is one.
#pragma once

#include <wan/cuda/executor.hpp>
#include <wan/memory_plan.hpp>

namespace wan::cuda {

/// As wan::plan_memory, for device memory and a model of `type`; `scratch` is cuBLAS's workspace,
/// and threads do not matter. While weights are uploaded and texts set some more is taken.
[[nodiscard]] memory_plan plan_memory(const config& shape, const memory_request& wanted,
                                      latpar::dtype type,
                                      index_t workspace_bytes = executor_options{}.workspace_bytes);

}  // namespace wan::cuda

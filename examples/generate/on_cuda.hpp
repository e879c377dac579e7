// SPDX-License-Identifier: Apache-2.0
// Ranks that compute on GPUs, in builds that have them.
#pragma once

#include <generate/run.hpp>

namespace generate {

/// Errors: usage_error, with what to do, for a job on GPUs, or with NCCL, in a build without.
void require_built(const options& wanted);
/// Errors: usage_error, with what to do, for a job on GPUs where there is none.
void require_device(const options& wanted);

/// As run_rank, on GPUs: rank r of a host takes device r, modulo their number.
///
/// Ranks that have a device each talk by NCCL, where that is built in; others through host memory.
/// Ranks: all of `world`, with one answer.
[[nodiscard]] ending run_on_cuda(latpar::any_communicator& world, const job& j,
                                 const surroundings& around, report& figures);

}  // namespace generate

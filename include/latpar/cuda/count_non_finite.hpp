// SPDX-License-Identifier: Apache-2.0
// How much of a latent in CUDA memory is no number any more.
#pragma once

#include <latpar/core/view.hpp>

namespace latpar::inline v0::cuda {

/// Adds the number of NaNs and infinities to `*counter`.
///
/// For a run that shall end where its numbers do, without waiting for each step: the counter is
/// read when the host waits anyway.
/// Stream: ordered on `stream`, whose device must be current in the calling thread; never blocks,
/// and can be captured in a graph.
/// Memory: f32, bf16 or f16 in CUDA memory, any strides; the counter in CUDA memory, set to zero
/// by the caller before the first count. Takes none.
/// Errors: device_error if the launch is refused; usage_error for other memory or types, and a null
/// or misaligned counter.
void count_non_finite(const const_latent_view& values, std::uint64_t* counter,
                      stream_ref stream = {});

}  // namespace latpar::inline v0::cuda

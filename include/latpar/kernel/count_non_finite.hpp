// SPDX-License-Identifier: Apache-2.0
// How much of a latent is no number any more.
#pragma once

#include <latpar/core/view.hpp>

namespace latpar::inline v0::kernel {

/// The number of NaNs and infinities.
///
/// For a run that shall end where its numbers do; what `cuda::count_non_finite` is compared with.
/// Memory: f32, bf16 or f16 on the host, any strides.
/// Errors: usage_error for other memory or types.
[[nodiscard]] std::uint64_t count_non_finite(const const_latent_view& values);

}  // namespace latpar::inline v0::kernel

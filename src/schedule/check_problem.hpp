// SPDX-License-Identifier: Apache-2.0
// What every plan refuses of a problem, in the same words.
#pragma once

#include <latpar/schedule/latent_problem.hpp>

namespace latpar::inline v0::detail {

/// Errors: usage_error unless `type` is computed with.
void check_sampling_type(dtype type);

/// What a value of `type` travels as when `wire` was asked for: nothing travels wider than it is.
[[nodiscard]] dtype narrowed(dtype wire, dtype type) noexcept;

}  // namespace latpar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
// What every plan refuses of a problem, in the same words.
#pragma once

#include <latpar/schedule/latent_problem.hpp>

namespace latpar::inline v0::detail {

/// Errors: usage_error for a problem that cannot be sampled: no element, no step, a history of
/// other steps, a type that is not computed with, or more bytes than can be counted when `copies`
/// ranks or parts move all of it.
void check_problem(const latent_problem& problem, index_t copies);

/// Errors: usage_error unless `type` is computed with.
void check_sampling_type(dtype type);

/// What a value of `type` travels as when `wire` was asked for: nothing travels wider than it is.
[[nodiscard]] dtype narrowed(dtype wire, dtype type) noexcept;

}  // namespace latpar::inline v0::detail

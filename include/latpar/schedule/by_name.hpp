// SPDX-License-Identifier: Apache-2.0
// Schedulers by name, for command lines and configuration files.
#pragma once

#include <latpar/schedule/linear_scheduler.hpp>

namespace latpar::inline v0::schedule {

/// What `by_name` knows.
inline constexpr std::array<std::string_view, 6> names{"euler_flow", "unipc_flow", "dpmpp2m_flow",
                                                       "ddim_eps",   "ddim_v",     "dpmpp2m_eps"};

/// The scheduler of that name, one of `names`, with the defaults of its options.
///
/// Errors: usage_error for another name, listing those there are, and for steps that it refuses.
[[nodiscard]] linear_scheduler by_name(std::string_view name, index_t steps);

}  // namespace latpar::inline v0::schedule

// SPDX-License-Identifier: Apache-2.0
// Which kernels this processor runs.
#pragma once

#include <wan/kernels.hpp>

#include <string_view>
#include <vector>

namespace wan {

/// The names of the kernels that this build has and this processor runs, the fastest last.
[[nodiscard]] std::vector<std::string_view> available_kernels();

/// The kernels of that name; "auto" is the fastest. Chosen from the processor's features.
///
/// Errors: usage_error if they are not available here.
[[nodiscard]] const kernel_table& find_kernels(std::string_view name = "auto");

}  // namespace wan

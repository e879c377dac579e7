// SPDX-License-Identifier: Apache-2.0
// What ranks tell each other when they set something up.
#pragma once

#include <latpar/core/error.hpp>

#include <string>

namespace latpar::inline v0::nccl::detail {

/// What tells this host, since it was started, from all others.
[[nodiscard]] const std::string& host_name();
/// What tells this process from all others.
[[nodiscard]] const std::string& process_name();

/// Bytes as text, two digits each.
[[nodiscard]] std::string hex_of(const void* data, std::size_t size);
/// Errors: comm_error for a text that is not of so many bytes.
void from_hex(const std::string& text, void* data, std::size_t size);

}  // namespace latpar::inline v0::nccl::detail

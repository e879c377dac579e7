// SPDX-License-Identifier: Apache-2.0
// What NCCL reports, as exceptions.
#pragma once

#include <latpar/core/error.hpp>

#include <nccl.h>

#include <string>

namespace latpar::inline v0::nccl::detail {

/// "creating a communicator failed: unhandled cuda error: ..."
template <class... Doing>
[[nodiscard]] std::string failure_text(ncclResult_t status, ncclComm_t comm,
                                       const Doing&... doing) {
    const char* last = ncclGetLastError(comm);
    const bool has_more = last != nullptr && *last != '\0';
    return latpar::detail::concat(doing..., " failed: ", ncclGetErrorString(status),
                                  has_more ? ": " : "", has_more ? last : "");
}

}  // namespace latpar::inline v0::nccl::detail

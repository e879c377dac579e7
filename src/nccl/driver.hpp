// SPDX-License-Identifier: Apache-2.0
// Functions of the CUDA driver, found when they are needed: nothing links against it.
#pragma once

#include <cuda.h>
#include <cuda/detail/check.hpp>

namespace latpar::inline v0::nccl::detail {

/// Errors: device_error if the driver has no such function.
template <class Function>
[[nodiscard]] Function* driver_function(const char* name) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    cuda::detail::check(
        cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found),
        "asking the driver for ", name);
    latpar::detail::require<device_error>(found == cudaDriverEntryPointSuccess && entry != nullptr,
                                          "the driver has no ", name);
    return reinterpret_cast<Function*>(entry);
}

/// Errors: device_error.
inline void check_driver(CUresult status, const char* what) {
    latpar::detail::require<device_error>(status == CUDA_SUCCESS, what, " failed with ",
                                          static_cast<int>(status), " of the CUDA driver");
}

}  // namespace latpar::inline v0::nccl::detail

// SPDX-License-Identifier: Apache-2.0
// Calls of CUDA's libraries, with an exception for each that fails.
#pragma once

#include <latpar/core/error.hpp>
#include <latpar/core/stream.hpp>

#include <cuda_runtime_api.h>

namespace wan::cuda {

/// Errors: device_error with CUDA's text and `doing`, unless `status` is success.
inline void check(cudaError_t status, const char* doing) {
    if (status == cudaSuccess) return;
    // An error that was reported once is not to be found again by whoever asks next.
    static_cast<void>(cudaGetLastError());
    throw latpar::device_error(
        latpar::detail::concat(doing, " failed: ", cudaGetErrorString(status)));
}

[[nodiscard]] inline cudaStream_t native(latpar::stream_ref stream) noexcept {
    return static_cast<cudaStream_t>(stream.handle);
}

}  // namespace wan::cuda

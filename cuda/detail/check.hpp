// SPDX-License-Identifier: Apache-2.0
// Calls of the CUDA runtime, with an exception for each that fails.
#pragma once

#include <latpar/core/error.hpp>
#include <latpar/core/stream.hpp>

#include <cuda_runtime_api.h>

namespace latpar::inline v0::cuda::detail {

/// Errors: device_error with CUDA's text and `doing`, unless `status` is success.
template <class... Doing>
void check(cudaError_t status, const Doing&... doing) {
    if (status == cudaSuccess) return;
    // An error that was reported once is not to be found again by whoever asks next.
    static_cast<void>(cudaGetLastError());
    throw device_error(latpar::detail::concat(doing..., " failed: ", cudaGetErrorString(status),
                                              " (", cudaGetErrorName(status), ')'));
}

[[nodiscard]] inline cudaStream_t native(stream_ref stream) noexcept {
    return static_cast<cudaStream_t>(stream.handle);
}

/// The device that memory is of; -1 for memory of the host, managed or not. Memory that another
/// process shares counts as the current device's, wherever it lies. Errors: device_error.
[[nodiscard]] inline int device_of(const void* memory) {
    cudaPointerAttributes found{};
    check(cudaPointerGetAttributes(&found, memory), "asking where memory lies");
    return found.type == cudaMemoryTypeDevice ? found.device : -1;
}

/// Makes a device current for a scope.
class device_scope {
public:
    explicit device_scope(int device) {
        check(cudaGetDevice(&before_), "asking for the current device");
        if (device == before_) return;
        check(cudaSetDevice(device), "making device ", device, " current");
        changed_ = true;
    }
    device_scope(const device_scope&) = delete;
    device_scope& operator=(const device_scope&) = delete;
    ~device_scope() {
        if (changed_) static_cast<void>(cudaSetDevice(before_));
    }

private:
    int before_ = 0;
    bool changed_ = false;
};

}  // namespace latpar::inline v0::cuda::detail

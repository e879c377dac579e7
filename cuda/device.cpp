// SPDX-License-Identifier: Apache-2.0
// The CUDA devices of this process.
#include "detail/check.hpp"

#include <latpar/cuda/device.hpp>

namespace latpar::inline v0::cuda {

int device_count() noexcept {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        static_cast<void>(cudaGetLastError());
        return 0;
    }
    return count;
}

int current_device() {
    int device = 0;
    detail::check(cudaGetDevice(&device), "asking for the current device");
    return device;
}

void set_device(int device) {
    const cudaError_t status = cudaSetDevice(device);
    if (status == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());
    const int count = device_count();
    latpar::detail::require<device_error>(
        count > 0, "device ", device,
        " was to be made current, and there is no CUDA device here, or no driver for it (",
        cudaGetErrorString(status), "); see nvidia-smi");
    latpar::detail::require<device_error>(device >= 0 && device < count, "device ", device,
                                          " was to be made current, and there are ", count,
                                          "; use 0 to ", count - 1);
    detail::check(status, "making device ", device, " current");
}

std::string device_name(int device) {
    cudaDeviceProp properties{};
    detail::check(cudaGetDeviceProperties(&properties, device), "asking for the name of device ",
                  device);
    return properties.name;
}

void copy_bytes(void* target, const void* source, index_t bytes, stream_ref stream) {
    if (bytes == 0) return;
    detail::check(cudaMemcpyAsync(target, source, static_cast<std::size_t>(bytes),
                                  cudaMemcpyDefault, detail::native(stream)),
                  "copying ", bytes, " bytes");
    if (detail::device_of(target) >= 0 && detail::device_of(source) >= 0) return;
    detail::check(cudaStreamSynchronize(detail::native(stream)), "copying ", bytes, " bytes");
}

}  // namespace latpar::inline v0::cuda

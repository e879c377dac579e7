// SPDX-License-Identifier: Apache-2.0
// A kernel that does nothing: what a launch costs by itself.
#include <cuda_runtime_api.h>

namespace {

__global__ void nothing() {}

}  // namespace

cudaError_t launch_nothing(cudaStream_t stream) {
    nothing<<<1, 32, 0, stream>>>();
    return cudaPeekAtLastError();
}

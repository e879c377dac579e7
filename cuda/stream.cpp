// SPDX-License-Identifier: Apache-2.0
// A CUDA stream that is owned.
#include "detail/check.hpp"

#include <latpar/cuda/stream.hpp>

namespace latpar::inline v0::cuda {

stream::stream() {
    cudaStream_t made = nullptr;
    detail::check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a stream");
    handle_.handle = made;
}

stream::~stream() {
    if (handle_.handle) static_cast<void>(cudaStreamDestroy(detail::native(handle_)));
}

void stream::synchronize() const {
    cuda::synchronize(handle_);
}

void synchronize(stream_ref stream) {
    detail::check(cudaStreamSynchronize(detail::native(stream)), "waiting for a stream");
}

}  // namespace latpar::inline v0::cuda

// SPDX-License-Identifier: Apache-2.0
// Memory of a CUDA device, and host memory that it can reach.
#include "detail/check.hpp"

#include <latpar/cuda/device.hpp>
#include <latpar/cuda/memory_resource.hpp>

namespace latpar::inline v0::cuda {
namespace {

/// What CUDA promises for every allocation.
constexpr std::size_t most_alignment = 256;

void check_alignment(std::size_t alignment) {
    latpar::detail::require(alignment <= most_alignment, "memory aligned to ", alignment,
                            " bytes was asked for; CUDA aligns to ", most_alignment);
}

}  // namespace

device_memory::device_memory() : device_(current_device()) {}

void* device_memory::do_allocate(std::size_t bytes, std::size_t alignment) {
    check_alignment(alignment);
    const detail::device_scope scope(device_);
    void* out = nullptr;
    detail::check(cudaMalloc(&out, bytes), "taking ", bytes, " bytes of device ", device_);
    return out;
}

void device_memory::do_deallocate(void* memory, std::size_t, std::size_t) {
    // It knows its device. Nothing can be done about a failure here, nor is it this call's.
    static_cast<void>(cudaFree(memory));
}

bool device_memory::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    const auto* const same = dynamic_cast<const device_memory*>(&other);
    return same && same->device_ == device_;
}

void* pinned_memory::do_allocate(std::size_t bytes, std::size_t alignment) {
    check_alignment(alignment);
    void* out = nullptr;
    detail::check(cudaHostAlloc(&out, bytes, cudaHostAllocPortable), "page-locking ", bytes,
                  " bytes of host memory");
    return out;
}

void pinned_memory::do_deallocate(void* memory, std::size_t, std::size_t) {
    static_cast<void>(cudaFreeHost(memory));
}

bool pinned_memory::do_is_equal(const std::pmr::memory_resource& other) const noexcept {
    return dynamic_cast<const pinned_memory*>(&other) != nullptr;
}

}  // namespace latpar::inline v0::cuda

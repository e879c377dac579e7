// SPDX-License-Identifier: Apache-2.0
// Memory of a CUDA device, and host memory that it can reach, as memory resources.
#pragma once

#include <latpar/core/memory.hpp>

namespace latpar::inline v0::cuda {

/// Memory of one device, aligned to 256 bytes.
///
/// Stream: giving memory back waits for the device, as cudaFree does.
/// Memory: device pointers, which nothing on the host reads through; it keeps no pool, so it is
/// for what is taken once, as workspaces are. Safe to use from several threads.
/// Errors: device_error if the device has no such memory left, usage_error for an alignment above
/// 256.
class device_memory final : public std::pmr::memory_resource {
public:
    /// On the current device. Errors: device_error if there is none.
    device_memory();
    explicit device_memory(int device) noexcept : device_(device) {}

    [[nodiscard]] int device() const noexcept { return device_; }
    /// What a policy takes.
    [[nodiscard]] memory_source source() noexcept { return {this, memory_space::cuda}; }

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;

    int device_ = 0;
};

/// Host memory that every device reads and writes at full speed, aligned to 256 bytes.
///
/// Memory: page-locked, so it is for what passes between host and device. Safe to use from several
/// threads.
/// Errors: device_error if there is no such memory left, usage_error for an alignment above 256.
class pinned_memory final : public std::pmr::memory_resource {
public:
    /// What a policy takes.
    [[nodiscard]] memory_source source() noexcept { return {this, memory_space::host}; }

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override;
    void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override;
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override;
};

}  // namespace latpar::inline v0::cuda

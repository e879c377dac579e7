// SPDX-License-Identifier: Apache-2.0
// POSIX shared memory for devices.
#include <cuda/detail/check.hpp>
#include <fcntl.h>
#include <nccl/shared_words.hpp>
#include <nccl/text.hpp>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

namespace latpar::inline v0::nccl::detail {
namespace {

using cuda::detail::check;

/// No other's on this host: a process has a name of its own.
std::string new_name() {
    static std::atomic<int> made = 0;
    return latpar::detail::concat("/latpar-", process_name(), '-', made++);
}

/// Maps what a name stands for, of the given size, or says why not; what it made is gone then.
void* map(const std::string& name, std::size_t bytes, int flags) {
    const int file = shm_open(name.c_str(), flags, S_IRUSR | S_IWUSR);
    void* memory = MAP_FAILED;
    if (file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) == 0) {
        memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    const int error = errno;
    if (file >= 0) close(file);
    if (file >= 0 && memory == MAP_FAILED && (flags & O_CREAT) != 0) shm_unlink(name.c_str());
    latpar::detail::require<device_error>(memory != MAP_FAILED, "sharing ", bytes,
                                          " bytes of host memory as ", name,
                                          " failed: ", std::strerror(error));
    return memory;
}

}  // namespace

shared_words::shared_words(std::size_t count) : shared_words(new_name(), count, O_CREAT | O_EXCL) {}

shared_words::shared_words(std::string name, std::size_t count)
    : shared_words(std::move(name), count, 0) {}

// What is taken is given back by the destructor from here on.
shared_words::shared_words(std::string name, std::size_t count, int flags) : shared_words() {
    name_ = std::move(name);
    bytes_ = sizeof(std::uint32_t) * count;
    words_ = static_cast<std::uint32_t*>(map(name_, bytes_, O_RDWR | flags));
    is_named_ = (flags & O_CREAT) != 0;
    check(cudaHostRegister(words_, bytes_, cudaHostRegisterPortable | cudaHostRegisterMapped),
          "page-locking ", bytes_, " bytes");
    void* device = nullptr;
    check(cudaHostGetDevicePointer(&device, words_, 0), "reaching page-locked memory");
    device_ = reinterpret_cast<std::uintptr_t>(device);
}

shared_words::~shared_words() {
    unname();
    if (words_ == nullptr) return;
    if (cudaHostUnregister(words_) != cudaSuccess) static_cast<void>(cudaGetLastError());
    munmap(words_, bytes_);
}

void shared_words::unname() noexcept {
    if (std::exchange(is_named_, false)) shm_unlink(name_.c_str());
}

}  // namespace latpar::inline v0::nccl::detail

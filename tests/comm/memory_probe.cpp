// SPDX-License-Identifier: Apache-2.0
// Replaces operator new to count, and maps memory repeatedly.
#include <comm/memory_probe.hpp>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace {
std::atomic<long> allocations = 0;
}

#if !LATPAR_TEST_SANITIZED  // The sanitizers bring their own.
void* operator new(std::size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
    std::free(memory);
}
#endif

long allocation_count() noexcept {
    return allocations;
}

std::size_t resident_bytes() {
    long pages = 0;
    std::FILE* file = std::fopen("/proc/self/statm", "r");
    if (!file || std::fscanf(file, "%*s %ld", &pages) != 1) pages = 0;
    if (file) std::fclose(file);
    return static_cast<std::size_t>(pages) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

repeated_bytes::repeated_bytes(std::size_t size) : mapped_((size + period - 1) / period * period) {
    const int file = memfd_create("latpar-test", 0);
    void* memory = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool good = file >= 0 && memory != MAP_FAILED && ftruncate(file, period) == 0;
    data_ = static_cast<std::uint8_t*>(memory);
    for (std::size_t at = 0; good && at < mapped_; at += period) {
        good = mmap(data_ + at, period, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) !=
               MAP_FAILED;
    }
    if (file >= 0) close(file);
    if (!good) throw std::runtime_error("pages could not be mapped repeatedly");
}

repeated_bytes::~repeated_bytes() {
    munmap(data_, mapped_);
}

// SPDX-License-Identifier: Apache-2.0
// What the transformer computes with: kernels, threads and scratch memory.
#include <wan/dispatch.hpp>
#include <wan/executor.hpp>

namespace wan {
namespace {

int thread_count(int wanted) {
    latpar::detail::require(wanted >= 0, wanted,
                            " threads were asked for; give 0 for all that the hardware has");
    if (wanted > 0) return wanted;
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// A multiple of 64 floats, so that no two threads share a cache line.
constexpr index_t rounded(index_t floats) noexcept {
    return (floats + 63) / 64 * 64;
}

}  // namespace

executor::executor(const executor_options& options)
    : kernels_(&find_kernels(options.kernels)),
      memory_(options.memory),
      pool_(thread_count(options.threads)) {
    latpar::detail::require(memory_.space == latpar::memory_space::host,
                            "the transformer computes in host memory, not ",
                            name_of(memory_.space));
}

index_t executor::scratch_bytes(index_t floats, int threads) noexcept {
    return rounded(floats) * threads * static_cast<index_t>(sizeof(float));
}

void executor::reserve(index_t floats) {
    if (rounded(floats) <= floats_per_thread_) return;
    floats_per_thread_ = 0;
    scratch_ = latpar::buffer();
    scratch_ = latpar::buffer(scratch_bytes(floats, threads()), memory_);
    floats_per_thread_ = rounded(floats);
}

}  // namespace wan

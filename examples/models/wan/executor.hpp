// SPDX-License-Identifier: Apache-2.0
// What the transformer computes with: kernels, threads and scratch memory.
#pragma once

#include <latpar/core/memory.hpp>

#include <wan/kernels.hpp>
#include <wan/thread_pool.hpp>

#include <string>

namespace wan {

struct executor_options {
    /// Threads of one model instance; 0 is all that the hardware has. Divide by the number of
    /// instances that run at once. The result does not depend on it.
    int threads = 0;
    /// "auto", or one of available_kernels().
    std::string kernels = "auto";
    /// Where activations and scratch memory come from.
    latpar::memory_source memory{};
};

/// Runs loops over blocks of rows or heads, each task on one thread.
///
/// An executor serves one model instance (and its attention) at a time.
class executor {
public:
    explicit executor(const executor_options& options = {});

    [[nodiscard]] const kernel_table& kernels() const noexcept { return *kernels_; }
    [[nodiscard]] int threads() const noexcept { return pool_.threads(); }
    [[nodiscard]] latpar::memory_source memory() const noexcept { return memory_; }
    /// Of the queries, keys, values and outputs of attention.
    [[nodiscard]] static constexpr latpar::dtype type() noexcept { return latpar::dtype::f32; }

    /// What the threads' scratch memory takes in all if a task needs `floats` floats.
    [[nodiscard]] static index_t scratch_bytes(index_t floats, int threads) noexcept;

    /// Calls `task(index, scratch)` for every index in [0, count); scratch has `floats` floats.
    template <class Task>
    void run(index_t count, index_t floats, const Task& task) {
        reserve(floats);
        pool_.run(count, [&](index_t index, int slot) {
            task(index, reinterpret_cast<float*>(scratch_.data()) + slot * floats_per_thread_);
        });
    }

private:
    void reserve(index_t floats);

    const kernel_table* kernels_;
    latpar::memory_source memory_;
    latpar::buffer scratch_;
    index_t floats_per_thread_ = 0;
    thread_pool pool_;
};

}  // namespace wan

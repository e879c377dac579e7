// SPDX-License-Identifier: Apache-2.0
// A small persistent thread pool.
#pragma once

#include <latpar/core/dtype.hpp>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace wan {

using latpar::index_t;

/// Threads that share out the tasks of one loop at a time; one of them is the caller.
class thread_pool {
public:
    explicit thread_pool(int threads);
    thread_pool(const thread_pool&) = delete;
    thread_pool& operator=(const thread_pool&) = delete;
    ~thread_pool();

    [[nodiscard]] int threads() const noexcept { return static_cast<int>(workers_.size()) + 1; }

    /// Calls `task(index, slot)` for every index in [0, count); a slot in [0, threads()) is used by
    /// one thread at a time. Returns when all have finished.
    ///
    /// Errors: the first exception of a task, after the others have stopped.
    template <class Task>
    void run(index_t count, const Task& task) {
        run_loop(count, &task, [](const void* call, index_t index, int slot) {
            (*static_cast<const Task*>(call))(index, slot);
        });
    }

private:
    void stop();
    using invoker = void (*)(const void* task, index_t index, int slot);

    void run_loop(index_t count, const void* task, invoker invoke);
    void work(int slot) noexcept;
    void take_tasks(int slot) noexcept;

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::condition_variable idle_;
    bool stop_ = false;
    bool open_ = false;
    int active_ = 0;
    std::exception_ptr failure_;

    const void* task_ = nullptr;
    invoker invoke_ = nullptr;
    index_t count_ = 0;
    std::atomic<index_t> next_ = 0;
};

}  // namespace wan

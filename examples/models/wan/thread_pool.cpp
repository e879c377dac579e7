// SPDX-License-Identifier: Apache-2.0
// A small persistent thread pool.
#include <latpar/core/error.hpp>

#include <wan/thread_pool.hpp>

#include <utility>

namespace wan {

thread_pool::thread_pool(int threads) {
    latpar::detail::require(threads >= 1, "a thread pool of ", threads,
                            " threads was asked for; at least 1 is needed");
    try {
        for (int slot = 1; slot < threads; ++slot) {
            workers_.emplace_back([this, slot] { work(slot); });
        }
    } catch (...) {
        stop();
        throw;
    }
}

thread_pool::~thread_pool() {
    stop();
}

void thread_pool::stop() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

// A worker that wakes when the loop is over is not waited for: it finds the loop closed.
void thread_pool::run_loop(index_t count, const void* task, invoker invoke) {
    {
        const std::lock_guard lock(mutex_);
        task_ = task;
        invoke_ = invoke;
        count_ = count;
        next_ = 0;
        open_ = count > 1;
    }
    if (count > 1) changed_.notify_all();
    take_tasks(0);
    std::unique_lock lock(mutex_);
    open_ = false;
    idle_.wait(lock, [this] { return active_ == 0; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void thread_pool::work(int slot) noexcept {
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [this] { return stop_ || (open_ && next_ < count_); });
        if (stop_) return;
        ++active_;
        lock.unlock();
        take_tasks(slot);
        lock.lock();
        if (--active_ == 0) idle_.notify_one();
    }
}

void thread_pool::take_tasks(int slot) noexcept {
    try {
        for (index_t index = next_++; index < count_; index = next_++) invoke_(task_, index, slot);
    } catch (...) {
        next_ = count_;
        const std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
    }
}

}  // namespace wan

// SPDX-License-Identifier: Apache-2.0
// The ends of communicators, each in a thread of its own.
#include <nccl/family.hpp>
#include <nccl/patience.hpp>

#include <chrono>
#include <system_error>
#include <utility>

namespace latpar::inline v0::nccl::detail {
namespace {

using clock = std::chrono::steady_clock;

}  // namespace

void family::end(const retiree& r) {
    auto is_done = std::make_shared<std::atomic<bool>>(false);
    const auto end_it = [r, is_done] {
        static_cast<void>(cudaSetDevice(r.device));
        std::jthread opener;
        const auto keep_open = [&r](const std::stop_token& stop) {
            static_cast<void>(cudaSetDevice(r.device));
            do {
                r.gate->open();
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            } while (!stop.stop_requested() || cudaStreamQuery(r.stream) == cudaErrorNotReady);
        };
        try {
            // A peer that does not know yet may shut it again.
            if (r.gate) opener = std::jthread(keep_open);
        } catch (const std::system_error&) {
            r.gate->open();  // without threads, once
        }
        static_cast<void>(r.is_sound ? ncclCommDestroy(r.comm) : ncclCommAbort(r.comm));
        if (opener.joinable()) {
            opener.request_stop();
            opener.join();
        }
        if (r.stream != nullptr) static_cast<void>(cudaStreamDestroy(r.stream));
        if (r.memory != nullptr) static_cast<void>(cudaFree(r.memory));
        *is_done = true;
    };
    try {
        std::jthread thread(end_it);
        const std::lock_guard lock(mutex);
        enders.push_back({std::move(thread), std::move(is_done)});
    } catch (const std::system_error&) {
        end_it();  // without threads, here and now
    }
}

void family::await_ends() noexcept {
    const clock::time_point limit = clock::now() + std::chrono::seconds(10);
    patience waiting;
    for (const ender& e : enders) {
        while (!*e.is_done && clock::now() < limit) waiting.wait();
    }
}

family::~family() {
    await_ends();
    for (ender& e : enders) {
        // NCCL waits for graphs that outlive their communicator: those are left to themselves.
        if (!*e.is_done) e.thread.detach();
    }
    for (const retiree& r : retired) {
        static_cast<void>(r.is_sound ? ncclCommDestroy(r.comm) : ncclCommAbort(r.comm));
    }
}

}  // namespace latpar::inline v0::nccl::detail

// SPDX-License-Identifier: Apache-2.0
// The communicators that a rank made from one another, and how NCCL is made to let go of them.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <nccl/gates.hpp>

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace latpar::inline v0::nccl::detail {

class channel;

/// The communicators of one rank that were made from one another.
struct family {
    family() = default;
    family(const family&) = delete;
    family& operator=(const family&) = delete;
    ~family();

    struct retiree {
        ncclComm_t comm;
        int device;
        bool is_sound;                ///< else it is aborted
        std::byte* memory = nullptr;  ///< of the device, given back behind it
        /// Where NCCL may still be queueing something; it goes when that has ended.
        cudaStream_t stream = nullptr;
        std::shared_ptr<gates> gate{};  ///< that is kept open until then
    };
    /// Ends what NCCL does for a communicator, on the device too. It is on its way when this
    /// returns: NCCL then waits for the device, which may wait for another that is ended next.
    void end(const retiree& r);
    /// Waits, 10 s at most, until what was ended has. The thread that ends them.
    void await_ends() noexcept;

    struct ender {
        std::jthread thread;
        std::shared_ptr<const std::atomic<bool>> is_done;
    };

    bool has_threads = false;  ///< whether any of their ranks share a process
    std::mutex mutex;
    std::vector<channel*> members;
    /// Those that are gone, where ranks share a process: NCCL gives back the memory of all of its
    /// ranks at once, which waits for their devices, and those for what other members do.
    std::vector<retiree> retired;
    std::vector<ender> enders;
};

}  // namespace latpar::inline v0::nccl::detail

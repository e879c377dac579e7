// SPDX-License-Identifier: Apache-2.0
// Where a stream waits for senders and takes nothing of the device meanwhile.
#pragma once

#include <latpar/comm/direct.hpp>

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace latpar::inline v0::nccl::detail {

/// A word for each peer in this rank's memory, which counts the messages that the peer has come to
/// send: set by the peer's stream, over the link, and waited for by this rank's.
///
/// A kernel of NCCL that waits for its peer holds multiprocessors; what waits here does not.
/// Ranks: all of a communicator; after a failure `open` lets everything through.
class gates {
public:
    /// Whether streams have queues enough that what waits in one does not hold up the others: not
    /// where CUDA_DEVICE_MAX_CONNECTIONS gives a device fewer than it has by default.
    [[nodiscard]] static bool can_wait() noexcept;
    /// Stream: blocks the host. Errors: device_error without the device's memory, or a driver that
    /// cannot wait so.
    explicit gates(int ranks);
    gates(const gates&) = delete;
    gates& operator=(const gates&) = delete;
    ~gates();

    [[nodiscard]] std::byte* memory() const noexcept { return memory_; }
    [[nodiscard]] index_t bytes() const noexcept { return 4 * std::ssize(coming_); }
    /// What rank `self` reaches of all ranks' gates; before anything else.
    void reach(peer_memory peers, int self);

    /// Tells a peer, when the stream comes there, that so many more messages are coming.
    void announce(int peer, std::uint32_t messages, cudaStream_t stream);
    /// So many more messages are to come from a peer.
    void expect(int peer, std::uint32_t messages) noexcept;
    /// The stream waits for the first message of a peer behind those that are expected.
    void wait_for_next(int peer, cudaStream_t stream);

    /// Ends what waits. A peer that does not know yet may shut it again: repeat it until the stream
    /// is through. Any thread.
    void open() noexcept;

private:
    struct empty {};
    gates(int ranks, empty);

    std::byte* memory_ = nullptr;
    cudaStream_t opening_ = nullptr;
    std::atomic<bool> is_open_ = false;
    int self_ = 0;
    peer_memory peers_;
    std::vector<std::uint32_t> going_;   ///< messages to each peer so far
    std::vector<std::uint32_t> coming_;  ///< messages from each peer so far
};

}  // namespace latpar::inline v0::nccl::detail

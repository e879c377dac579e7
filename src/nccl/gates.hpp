// SPDX-License-Identifier: Apache-2.0
// Where a stream waits for peers and takes nothing of the device meanwhile.
#pragma once

#include <latpar/comm/direct.hpp>

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace latpar::inline v0::nccl::detail {

/// Words for each peer in this rank's memory, in which the peer counts messages: set by the peer's
/// stream, over the link, and waited for by this rank's.
///
/// A kernel of NCCL that waits for its peer holds multiprocessors; what waits here does not.
/// Ranks: all of a communicator; after a failure `open` lets everything through.
class gates {
public:
    /// What a rank tells a peer of a message between them, as in any rendezvous: that it has come to
    /// send it, that it has come to receive it, or that it has written it.
    enum class news { sending, receiving, written };

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
    [[nodiscard]] index_t bytes() const noexcept { return 4 * std::ssize(heard_); }
    /// What rank `self` reaches of all ranks' gates; before anything else.
    void reach(peer_memory peers, int self);

    /// Tells a peer news of so many more messages, when the stream comes there.
    void tell(news what, int peer, std::uint32_t messages, cudaStream_t stream);
    /// The stream waits for news of the first message behind those that were counted.
    void await(news what, int peer, cudaStream_t stream);
    /// Counts so many more messages from a peer as told.
    void count(news what, int peer, std::uint32_t messages) noexcept;

    /// Ends what waits. A peer that does not know yet may shut it again: repeat it until the stream
    /// is through. Any thread.
    void open() noexcept;

private:
    struct empty {};
    gates(int ranks, empty);
    /// The place of a peer's word, in every rank's memory.
    [[nodiscard]] std::size_t place_of(news what, int peer) const noexcept {
        return static_cast<std::size_t>(what) * ranks_ + static_cast<std::size_t>(peer);
    }

    std::size_t ranks_;

    std::byte* memory_ = nullptr;
    cudaStream_t opening_ = nullptr;
    std::atomic<bool> is_open_ = false;
    /// So that what was written before a word is seen behind it; where a device has no such wait,
    /// writes of one stream come in order.
    unsigned int flush_ = 0;
    int self_ = 0;
    peer_memory peers_;
    std::vector<std::uint32_t> told_;   ///< messages, by the place of the word
    std::vector<std::uint32_t> heard_;  ///< messages, by the place of the word
};

}  // namespace latpar::inline v0::nccl::detail

// SPDX-License-Identifier: Apache-2.0
// Where a stream waits for peers and takes nothing of the device meanwhile.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl/shared_words.hpp>

#include <memory>
#include <vector>

namespace latpar::inline v0::nccl::detail {

/// Words of each pair of ranks, in which one counts messages for the other: set by the one's stream
/// and waited for by the other's.
///
/// A kernel of NCCL that waits for its peer holds multiprocessors; what waits here does not. The
/// words are the host's, so that it can let everything through, after a failure, whatever holds
/// the device up.
class gates {
public:
    /// What a rank tells a peer of a message between them, as in any rendezvous: that it has come to
    /// send it, that it has come to receive it, or that it has written it.
    enum class news { sending, receiving, written };

    /// Whether streams have queues enough that what waits in one does not hold up the others: not
    /// where CUDA_DEVICE_MAX_CONNECTIONS gives a device fewer than it has by default.
    [[nodiscard]] static bool can_wait() noexcept;
    /// How many words so many ranks need.
    [[nodiscard]] static std::size_t words_of(int ranks) noexcept;
    /// Tries on a stream whether it can; the words are needed until the stream is through, even if it
    /// cannot. Errors: device_error for a driver or a device that cannot.
    gates(std::shared_ptr<shared_words> words, int self, int ranks, cudaStream_t stream);

    /// Tells a peer news of so many more messages, when the stream comes there.
    void tell(news what, int peer, std::uint32_t messages, cudaStream_t stream);
    /// The stream waits for news of the first message behind those that were counted.
    void await(news what, int peer, cudaStream_t stream);
    /// Counts so many more messages from a peer as told.
    void count(news what, int peer, std::uint32_t messages) noexcept;

    /// Ends what waits on this rank. A peer that does not know yet may shut it again: repeat it
    /// until the stream is through. Any thread.
    void open() noexcept;

private:
    /// Where a rank counts its peers' messages, of all ranks' words or of its own.
    [[nodiscard]] std::size_t place_of(news what, int peer, int rank = 0) const noexcept;

    std::shared_ptr<shared_words> words_;
    std::size_t ranks_;
    int self_;
    /// So that what a peer has written here is seen behind its word, where the device can flush: the
    /// peer's stream writes the word behind a fence of its own.
    unsigned int flush_ = 0;
    std::vector<std::uint32_t> told_;   ///< messages, by the place of the word
    std::vector<std::uint32_t> heard_;  ///< messages, by the place of the word
};

}  // namespace latpar::inline v0::nccl::detail

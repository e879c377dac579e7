// SPDX-License-Identifier: Apache-2.0
// Memory of a policy that other ranks write to.
#pragma once

#include <latpar/comm/direct.hpp>
#include <latpar/core/memory.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace latpar::inline v0::detail {

/// A buffer that the other ranks of a communicator reach, where it lets them.
class shared_buffer {
public:
    shared_buffer() = default;
    shared_buffer(shared_buffer&&) noexcept = default;
    shared_buffer& operator=(shared_buffer&& other) noexcept {
        std::swap(storage_, other.storage_);
        std::swap(taken_, other.taken_);
        std::swap(peers_, other.peers_);
        return *this;
    }
    ~shared_buffer() { part(); }

    /// Makes room for `bytes_of(rank)` bytes on each rank, and shares it; what it held is lost if
    /// any rank needs more than before, and all is as it was if none does. Ranks: all, with the same
    /// function. Errors: what the source throws.
    template <class BytesOf, communicator Comm>
    void reserve(const BytesOf& bytes_of, memory_source source, Comm& comm) {
        std::vector<index_t> wanted = taken_;
        wanted.resize(static_cast<std::size_t>(comm.size()), 0);
        bool grows = taken_.empty();
        for (int rank = 0; rank < comm.size(); ++rank) {
            const index_t needed = bytes_of(rank);
            index_t& most = wanted[static_cast<std::size_t>(rank)];
            grows = grows || needed > most;
            most = std::max(most, needed);
        }
        if (!grows) return;
        const bool was_shared = is_shared();
        part();
        // Nobody's memory goes while another reaches it.
        if (was_shared) static_cast<void>(comm.control_all_gather({}));
        const index_t own = wanted[static_cast<std::size_t>(comm.rank())];
        if (bytes() < own) {
            storage_ = {};
            storage_ = buffer(own, source);
        }
        if constexpr (direct_communicator<Comm>) {
            if (comm.size() > 1) peers_ = comm.share(data(), bytes(), source.space);
        }
        taken_ = std::move(wanted);
    }

    [[nodiscard]] std::byte* data() const noexcept { return storage_.data(); }
    [[nodiscard]] index_t bytes() const noexcept { return storage_.bytes(); }
    [[nodiscard]] bool is_shared() const noexcept { return !peers_.empty(); }
    /// Where a rank's begins, as this rank reaches it; of one that is shared.
    [[nodiscard]] std::byte* at(int rank) const {
        return peers_.of[static_cast<std::size_t>(rank)];
    }
    /// What lies with a rank where `mine` does here, or null if that is not reached.
    [[nodiscard]] std::byte* at(int rank, const std::byte* mine) const {
        return is_shared() ? at(rank) + (mine - data()) : nullptr;
    }

private:
    /// Ends the sharing, before memory can be given back.
    void part() noexcept {
        if (peers_.is_broken()) storage_.abandon();
        peers_ = {};
    }

    buffer storage_;
    std::vector<index_t> taken_;  ///< bytes, by all ranks
    peer_memory peers_;
};

}  // namespace latpar::inline v0::detail

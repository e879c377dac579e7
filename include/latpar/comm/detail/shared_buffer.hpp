// SPDX-License-Identifier: Apache-2.0
// Memory of a policy that other ranks write to.
#pragma once

#include <latpar/comm/direct.hpp>
#include <latpar/core/memory.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

namespace latpar::inline v0::detail {

/// A buffer that the other ranks of a communicator reach, where it lets them, or of several
/// communicators of the same ranks.
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
        const std::array<Comm*, 1> alone{&comm};
        reserve(bytes_of, source, std::span<Comm* const>(alone));
    }
    /// Shares it over each of the communicators, which are known by their places from then on.
    template <class BytesOf, communicator Comm>
    void reserve(const BytesOf& bytes_of, memory_source source, std::span<Comm* const> over) {
        Comm& comm = *over.front();
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
        const bool was_shared =
            std::ranges::any_of(peers_, [](const peer_memory& peers) { return !peers.empty(); });
        part();
        // Nobody's memory goes while another reaches it.
        if (was_shared) static_cast<void>(comm.control_all_gather({}));
        const index_t own = wanted[static_cast<std::size_t>(comm.rank())];
        if (bytes() < own) {
            storage_ = {};
            storage_ = buffer(own, source);
        }
        if constexpr (direct_communicator<Comm>) {
            for (Comm* one : over) {
                if (one->size() > 1) peers_.push_back(one->share(data(), bytes(), source.space));
            }
        }
        taken_ = std::move(wanted);
    }

    [[nodiscard]] std::byte* data() const noexcept { return storage_.data(); }
    [[nodiscard]] index_t bytes() const noexcept { return storage_.bytes(); }
    [[nodiscard]] memory_space space() const noexcept { return storage_.space(); }
    [[nodiscard]] bool is_shared(std::size_t over = 0) const noexcept {
        return over < peers_.size() && !peers_[over].empty();
    }
    /// Where a rank's begins, as this rank reaches it; of one that is shared.
    [[nodiscard]] std::byte* at(int rank, std::size_t over = 0) const {
        return peers_[over].of[static_cast<std::size_t>(rank)];
    }
    /// What lies with a rank where `mine` does here, or null if that is not reached.
    [[nodiscard]] std::byte* at(int rank, const std::byte* mine, std::size_t over = 0) const {
        return is_shared(over) ? at(rank, over) + (mine - data()) : nullptr;
    }

private:
    /// Ends the sharing, before memory can be given back.
    void part() noexcept {
        const auto is_broken = [](const peer_memory& peers) { return peers.is_broken(); };
        if (std::ranges::any_of(peers_, is_broken)) storage_.abandon();
        peers_.clear();
    }

    buffer storage_;
    std::vector<index_t> taken_;      ///< bytes, by all ranks
    std::vector<peer_memory> peers_;  ///< by the place of the communicator
};

}  // namespace latpar::inline v0::detail

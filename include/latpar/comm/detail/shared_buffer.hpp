// SPDX-License-Identifier: Apache-2.0
// Memory of a policy that other ranks write to.
#pragma once

#include <latpar/comm/direct.hpp>
#include <latpar/core/memory.hpp>

namespace latpar::inline v0::detail {

/// A buffer that the other ranks of a communicator reach, where it lets them.
class shared_buffer {
public:
    shared_buffer() = default;
    shared_buffer(shared_buffer&&) noexcept = default;
    shared_buffer& operator=(shared_buffer&&) = delete;
    ~shared_buffer() { part(); }

    /// Makes room for `bytes`, which may differ from rank to rank, and shares it; what it held is
    /// lost. Ranks: all. Errors: what the source throws.
    template <communicator Comm>
    void reserve(index_t bytes, memory_source source, Comm& comm) {
        part();
        if (storage_.bytes() < bytes) {
            storage_ = {};
            storage_ = buffer(bytes, source);
        }
        if constexpr (direct_communicator<Comm>) {
            if (comm.size() > 1) peers_ = comm.share(data(), this->bytes(), source.space);
        }
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
    peer_memory peers_;
};

}  // namespace latpar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
// Communicators whose ranks can write to each other's memory.
#pragma once

#include <latpar/comm/communicator.hpp>

#include <memory>
#include <vector>

namespace latpar::inline v0 {

/// What a backend keeps for memory that ranks share.
class memory_mapping {
public:
    memory_mapping() = default;
    memory_mapping(const memory_mapping&) = delete;
    memory_mapping& operator=(const memory_mapping&) = delete;
    virtual ~memory_mapping() = default;

    /// Whether, since a rank failed, others may write to this one's memory without asking.
    [[nodiscard]] virtual bool is_broken() const noexcept = 0;
};

/// The memory that each rank shares, as this rank reaches it: `of[r]` is rank r's.
///
/// Empty where it does not: then messages serve. Movable; the memory is reached until this ends,
/// and no longer than its owner has it. An owner gives up what is broken when this ends, instead of
/// giving it back: what was queued before the failure may still write there.
struct peer_memory {
    std::vector<std::byte*> of{};
    std::shared_ptr<memory_mapping> mapping{};

    [[nodiscard]] bool empty() const noexcept { return of.empty(); }
    [[nodiscard]] bool is_broken() const noexcept { return mapping && mapping->is_broken(); }
};

/// A communicator by which a rank may write to where another wants it, instead of packing a
/// message that is unpacked there.
///
/// - `share(memory, bytes, space)`: collective, blocks the host; each rank's `memory` for the
///   others, `bytes` of its own, which nobody compares. Empty on all ranks if one of them cannot
///   reach another's, or passes null. `of[rank()]` is `memory`. Errors: comm_error, device_error.
/// - `meet(stream)`: collective, in the order of the exchanges; what follows on the stream finds
///   what the ranks wrote before it. Errors: as an exchange.
/// - `note(sends, recvs)`: the messages that were written directly, for whoever keeps account.
///
/// A rank writes to another's memory only between two meets, so that nobody reads what is
/// being written, and none is written to that has left. Ending a mapping is not collective: behind
/// the last meet each does it when it likes. A message whose target lies there (see
/// communicator) needs neither: it is received like any other.
template <class C>
concept direct_communicator = communicator<C> &&
    requires(C& comm, std::byte* memory, index_t bytes, memory_space space, stream_ref stream,
             std::span<const send_op> sends, std::span<const recv_op> recvs) {
    { comm.share(memory, bytes, space) } -> std::same_as<peer_memory>;
    { comm.meet(stream) } -> std::same_as<void>;
    { comm.note(sends, recvs) } -> std::same_as<void>;
};

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// The checks that every communicator makes before an exchange sends anything.
#pragma once

#include <latpar/comm/communicator.hpp>

namespace latpar::inline v0::detail {

template <class Op, class Reaches>
void check_operation(std::string_view verb, const Op& op, int size, const Reaches& reaches) {
    require(op.peer >= 0 && op.peer < size, verb, " names rank ", op.peer,
            "; the last of this communicator is ", size - 1);
    require(op.count >= 0, verb, " rank ", op.peer, " has a count of ", op.count,
            "; a count is zero or more");
    require(op.count == 0 || op.data != nullptr, verb, " rank ", op.peer, " has ", op.count,
            " elements of ", name_of(op.type), " at a null pointer");
    require(op.count == 0 || reaches(op.space), verb, " rank ", op.peer, " has a buffer in ",
            name_of(op.space), " memory, which this communicator does not reach; copy it first");
}

inline bool has_target(const send_op& op) {
    return op.target != nullptr;
}
inline bool has_target(const recv_op& op) {
    return op.is_target;
}

/// Errors: usage_error unless all messages of device memory have a target or none has, and those
/// that are sent to one go to one rank.
inline void check_targets(std::span<const send_op> sends, std::span<const recv_op> recvs) {
    bool some_have = false;
    bool some_have_none = false;
    int peer = -1;
    const auto see = [&](const auto& op) {
        const bool is_seen = op.space != memory_space::host && op.count > 0;
        if (is_seen) (has_target(op) ? some_have : some_have_none) = true;
        return is_seen && has_target(op);
    };
    for (const send_op& op : sends) {
        if (!see(op)) continue;
        require(peer < 0 || peer == op.peer, "an exchange has targets on ranks ", peer, " and ",
                op.peer, "; give the messages to each an exchange of their own");
        peer = op.peer;
    }
    for (const recv_op& op : recvs) static_cast<void>(see(op));
    require(!some_have || !some_have_none,
            "an exchange of device memory has messages with a target and without; start them "
            "apart");
}

/// Errors: usage_error for a peer out of range, a negative count, a null pointer with a positive
/// count, a memory space that `reaches` refuses, or targets as check_targets refuses them.
template <class Reaches>
void check_operations(int size, std::span<const send_op> sends, std::span<const recv_op> recvs,
                      const Reaches& reaches) {
    for (const send_op& op : sends) check_operation("a send to", op, size, reaches);
    for (const recv_op& op : recvs) check_operation("a receive from", op, size, reaches);
    check_targets(sends, recvs);
}

}  // namespace latpar::inline v0::detail

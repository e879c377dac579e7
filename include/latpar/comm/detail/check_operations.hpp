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

/// Errors: usage_error for a peer out of range, a negative count, a null pointer with a positive
/// count, or a memory space that `reaches` refuses.
template <class Reaches>
void check_operations(int size, std::span<const send_op> sends, std::span<const recv_op> recvs,
                      const Reaches& reaches) {
    for (const send_op& op : sends) check_operation("a send to", op, size, reaches);
    for (const recv_op& op : recvs) check_operation("a receive from", op, size, reaches);
}

}  // namespace latpar::inline v0::detail

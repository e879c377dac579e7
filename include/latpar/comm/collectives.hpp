// SPDX-License-Identifier: Apache-2.0
// Collective operations, as free functions on one or two exchanges.
//
// They take elements: contiguous ranges, or views of bytes and a dtype in any memory that the
// communicator reaches. All ranks call them, with counts that fit; the stream means what it means
// to `exchange`. The two sides of a call do not overlap, but a rank's own part may already lie in
// its place. Counts that do not fit the buffers are a usage_error before anything is sent.
#pragma once

#include <latpar/comm/communicator.hpp>
#include <latpar/comm/elements.hpp>

#include <memory_resource>
#include <type_traits>

namespace latpar::inline v0 {

namespace detail {

/// The operations of one collective; up to about a hundred ranks they need no heap.
class operation_list {
public:
    explicit operation_list(int ranks) {
        sends_.reserve(static_cast<std::size_t>(ranks));
        recvs_.reserve(static_cast<std::size_t>(ranks));
    }
    void send(const const_elements& from, int peer) {
        sends_.push_back({from.data, from.count, from.type, peer, from.space});
    }
    void receive(const elements& to, int peer) {
        recvs_.push_back({to.data, to.count, to.type, peer, to.space});
    }
    /// A rank's own part travels as a self-message, unless it already lies where it belongs.
    void keep(const const_elements& from, const elements& to, int self) {
        if (from.data == to.data) return;
        send(from, self);
        receive(to, self);
    }
    template <class C>
    void run(C& comm, stream_ref stream) {
        exchange(comm, std::span<const send_op>(sends_), std::span<const recv_op>(recvs_), stream);
    }

private:
    std::byte stack_[8192];
    std::pmr::monotonic_buffer_resource memory_{stack_, sizeof stack_};
    std::pmr::vector<send_op> sends_{&memory_};
    std::pmr::vector<recv_op> recvs_{&memory_};
};

/// Errors: usage_error unless there is one count for each rank and they fill `elements`.
void require_counts(std::string_view what, std::span<const index_t> counts, int ranks,
                    index_t elements);
void require_root(int root, int ranks);
[[nodiscard]] std::vector<index_t> equal_counts(index_t count, int ranks);
/// `total` cut as evenly as can be.
[[nodiscard]] std::vector<index_t> shares_of(index_t total, int ranks);
void require_elements(std::string_view what, index_t given, index_t needed);
void require_type(dtype sent, dtype received);

}  // namespace detail

/// Every rank gets every rank's elements, in rank order; `counts[r]` come from rank r.
template <communicator C>
void all_gather_v(C& comm, const_elements mine, elements all, std::span<const index_t> counts,
                  stream_ref stream = {}) {
    const int self = comm.rank();
    detail::require_counts("all_gather_v", counts, comm.size(), all.count);
    detail::require_elements("all_gather_v", mine.count, counts[static_cast<std::size_t>(self)]);
    detail::require_type(mine.type, all.type);
    detail::operation_list list(comm.size());
    index_t offset = 0;
    for (int peer = 0; peer < comm.size(); ++peer) {
        const index_t count = counts[static_cast<std::size_t>(peer)];
        if (peer == self) {
            list.keep(mine, all.part(offset, count), self);
        } else {
            list.send(mine, peer);
            list.receive(all.part(offset, count), peer);
        }
        offset += count;
    }
    list.run(comm, stream);
}

/// Every rank gets every rank's elements, equally many from each, in rank order.
template <communicator C>
void all_gather(C& comm, const_elements mine, elements all, stream_ref stream = {}) {
    detail::require_elements("all_gather", all.count, mine.count * comm.size());
    const std::vector<index_t> counts = detail::equal_counts(mine.count, comm.size());
    all_gather_v(comm, mine, all, counts, stream);
}

/// Rank r gets `send_counts[r]` elements of `out`; `recv_counts[r]` come from rank r into `in`.
///
/// Both buffers hold their parts in rank order without gaps.
template <communicator C>
void all_to_all_v(C& comm, const_elements out, std::span<const index_t> send_counts, elements in,
                  std::span<const index_t> recv_counts, stream_ref stream = {}) {
    const auto self = static_cast<std::size_t>(comm.rank());
    detail::require_counts("all_to_all_v (to send)", send_counts, comm.size(), out.count);
    detail::require_counts("all_to_all_v (to receive)", recv_counts, comm.size(), in.count);
    detail::require_elements("all_to_all_v to itself", recv_counts[self], send_counts[self]);
    detail::require_type(out.type, in.type);
    detail::operation_list list(comm.size());
    index_t from = 0;
    index_t to = 0;
    for (std::size_t peer = 0; peer < send_counts.size(); ++peer) {
        const const_elements leaves = out.part(from, send_counts[peer]);
        const elements arrives = in.part(to, recv_counts[peer]);
        if (peer == self) {
            list.keep(leaves, arrives, comm.rank());
        } else {
            list.send(leaves, static_cast<int>(peer));
            list.receive(arrives, static_cast<int>(peer));
        }
        from += send_counts[peer];
        to += recv_counts[peer];
    }
    list.run(comm, stream);
}

/// Every rank gets the root's elements; n - 1 messages.
template <communicator C>
void broadcast(C& comm, elements data, int root, stream_ref stream = {}) {
    detail::require_root(root, comm.size());
    detail::operation_list list(comm.size());
    if (comm.rank() != root) {
        list.receive(data, root);
    } else {
        for (int peer = 0; peer < comm.size(); ++peer) {
            if (peer != root) list.send(data, peer);
        }
    }
    list.run(comm, stream);
}

/// The root gets every rank's elements in rank order, `counts[r]` from rank r.
///
/// `all` and `counts` are read on the root only.
template <communicator C>
void gather_v(C& comm, const_elements mine, elements all, std::span<const index_t> counts, int root,
              stream_ref stream = {}) {
    detail::require_root(root, comm.size());
    detail::operation_list list(comm.size());
    if (comm.rank() != root) {
        list.send(mine, root);
    } else {
        detail::require_counts("gather_v", counts, comm.size(), all.count);
        detail::require_elements("gather_v", mine.count, counts[static_cast<std::size_t>(root)]);
        detail::require_type(mine.type, all.type);
        index_t offset = 0;
        for (int peer = 0; peer < comm.size(); ++peer) {
            const index_t count = counts[static_cast<std::size_t>(peer)];
            if (peer == root) {
                list.keep(mine, all.part(offset, count), root);
            } else {
                list.receive(all.part(offset, count), peer);
            }
            offset += count;
        }
    }
    list.run(comm, stream);
}

/// The root gets every rank's elements in rank order, equally many from each.
template <communicator C>
void gather(C& comm, const_elements mine, elements all, int root, stream_ref stream = {}) {
    const std::vector<index_t> counts = detail::equal_counts(mine.count, comm.size());
    gather_v(comm, mine, all, counts, root, stream);
}

/// Rank r gets `counts[r]` of the root's elements, which hold the parts in rank order.
///
/// `all` and `counts` are read on the root only.
template <communicator C>
void scatter_v(C& comm, const_elements all, std::span<const index_t> counts, elements mine,
               int root, stream_ref stream = {}) {
    detail::require_root(root, comm.size());
    detail::operation_list list(comm.size());
    if (comm.rank() != root) {
        list.receive(mine, root);
    } else {
        detail::require_counts("scatter_v", counts, comm.size(), all.count);
        detail::require_elements("scatter_v", mine.count, counts[static_cast<std::size_t>(root)]);
        detail::require_type(all.type, mine.type);
        index_t offset = 0;
        for (int peer = 0; peer < comm.size(); ++peer) {
            const index_t count = counts[static_cast<std::size_t>(peer)];
            if (peer == root) {
                list.keep(all.part(offset, count), mine, root);
            } else {
                list.send(all.part(offset, count), peer);
            }
            offset += count;
        }
    }
    list.run(comm, stream);
}

/// How all_reduce joins two values.
enum class reduce_op : std::uint8_t { sum, max, min };

namespace detail {
template <class T>
[[nodiscard]] T reduced(T left, T right, reduce_op op) noexcept {
    if (op == reduce_op::sum) return left + right;
    // A NaN must not vanish.
    if (left != left) return left;
    return (op == reduce_op::max ? left < right : right < left) || right != right ? right : left;
}
}  // namespace detail

/// Replaces every element by the reduction of that element over all ranks, in rank order.
///
/// Rank 0's value comes first, then rank 1's, and so on, whatever the backend: one binary gives one
/// result, the same bits on every rank. Two exchanges; 2 (n - 1) times the bytes of `values` move
/// in total. A NaN on any rank gives NaN. Memory: host.
template <communicator C, class T>
void all_reduce(C& comm, std::span<T> values, reduce_op op, stream_ref stream = {}) {
    const auto ranks = static_cast<index_t>(comm.size());
    const auto self = static_cast<std::size_t>(comm.rank());
    const auto total = static_cast<index_t>(values.size());
    // Rank r reduces the elements [r total / n, (r + 1) total / n).
    const std::vector<index_t> counts = detail::shares_of(total, comm.size());
    const index_t own = counts[self];
    const std::vector<index_t> own_counts = detail::equal_counts(own, comm.size());
    std::vector<T> parts(static_cast<std::size_t>(own * ranks));
    all_to_all_v(comm, values, counts, parts, own_counts, stream);
    for (index_t i = 0; i < own; ++i) {
        T& out = parts[static_cast<std::size_t>(i)];
        for (index_t r = 1; r < ranks; ++r) {
            out = detail::reduced(out, parts[static_cast<std::size_t>(r * own + i)], op);
        }
    }
    all_gather_v(comm, const_elements(parts).part(0, own), values, counts, stream);
}

/// The reduction of one value over all ranks, in rank order.
template <communicator C, class T>
requires std::is_arithmetic_v<T>
[[nodiscard]] T all_reduce(C& comm, T value, reduce_op op) {
    all_reduce(comm, std::span<T>(&value, 1), op);
    return value;
}

/// Returns once every rank has called it. Blocks the host; control channel only.
template <communicator C>
void barrier(C& comm) {
    static_cast<void>(comm.control_all_gather({}));
}

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// The communicator concept: what a policy asks of a set of ranks.
#pragma once

#include <latpar/core/view.hpp>

#include <chrono>
#include <concepts>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace latpar::inline v0 {

/// A message that leaves: `count` elements at `data` go to rank `peer`.
struct send_op {
    const void* data = nullptr;
    index_t count = 0;
    dtype type = dtype::u8;
    int peer = 0;
    memory_space space = memory_space::host;
    void* target = nullptr;  ///< where it is received, as this rank reaches it; null if unknown

    [[nodiscard]] constexpr index_t bytes() const noexcept { return count * size_of(type); }
};

/// A message that arrives: exactly `count` elements from rank `peer` are written to `data`.
struct recv_op {
    void* data = nullptr;
    index_t count = 0;
    dtype type = dtype::u8;
    int peer = 0;
    memory_space space = memory_space::host;
    bool is_target = false;  ///< whether the sender names it as its target

    [[nodiscard]] constexpr index_t bytes() const noexcept { return count * size_of(type); }
};

/// A point in time after which a wait gives up.
using deadline = std::chrono::steady_clock::time_point;

/// The colour with which a rank takes part in a split without joining any of its parts.
inline constexpr int no_color = -1;

/// An exchange in flight.
///
/// The buffers of its operations stay untouched by the user until it is done.
/// - `test()`: makes progress and tells whether it is done; never blocks.
/// - `wait()`: blocks the host until it is done (with a device stream: until it is ordered there).
/// - `wait_until(deadline)`: blocks the host until it is done, where `wait` may only order it on a
///   stream, but gives up at the deadline with `false`; the exchange is then still in flight and
///   may be waited for again. While the stream is captured in a graph: as `wait`.
///
/// Errors: comm_error from each if the communicator was aborted, with the aborting rank's reason.
/// A request that is destroyed in flight waits first; its destructor does not throw.
template <class Request>
concept exchange_request = std::movable<Request> && requires(Request& request, deadline when) {
    { request.test() } -> std::same_as<bool>;
    { request.wait() } -> std::same_as<void>;
    { request.wait_until(when) } -> std::same_as<bool>;
};

/// A set of ranks that exchange messages.
///
/// Matching: per pair of ranks and communicator, the n-th send meets the n-th receive, in the order
/// in which the exchanges were started; there are no tags and no wildcards. A message must be
/// received with the element count and type that it was sent with (comm_error otherwise). A
/// program is correct if it completes when every send is synchronous; `start_exchange` itself never
/// blocks on a peer. Self-messages and messages of zero elements match like all others. Between
/// GPUs the exchanges of a communicator are done in the order of their starts (nccl::communicator).
/// Targets: a message may name where it is received, in memory that this very communicator shares
/// (direct_communicator); a backend may then write it there. Both sides say so, or neither. Of the
/// messages of device memory in one exchange all have targets or none has, and those that are sent
/// to targets go to one rank. Who passes on an operation with other data passes on its target
/// likewise, or leaves it out on both sides.
///
/// - `start_exchange(sends, recvs, stream)`: starts all of them together, none waits for another.
///   Errors: usage_error, before anything is sent, for a peer out of range, a negative count, a
///   null pointer with a positive count, a memory space that this communicator does not reach, or
///   targets in another combination.
/// - `split(color, key)`: collective; the ranks of equal color form a communicator, ordered by
///   (key, rank here); std::nullopt for a rank that passes `no_color`. Errors: usage_error for
///   other negative colors.
/// - `duplicate()`: collective; the same ranks on a channel of its own, independent of this one.
/// - `control_all_gather(text)`: collective on the host; every rank gets every rank's text, in rank
///   order. Blocks. It travels on the control channel, never matches payload, is metered apart.
/// - `abort(reason)`: every operation of every rank on this communicator, pending or later, and on
///   those split or duplicated from it, throws comm_error with the reason; the first reason wins.
///   Waits for no peer; a backend may wait for its own device. Nothing is usable afterwards.
///
/// Collective calls are made in the same order on every rank of a communicator.
/// One thread uses a communicator at a time; different communicators may be used by different
/// threads at once where the backend says so.
template <class C>
concept communicator = std::movable<C> &&
    requires(C& comm, const C& fixed, std::span<const send_op> sends,
             std::span<const recv_op> recvs, stream_ref stream, std::string_view text, int color,
             int key, memory_space space) {
    { fixed.rank() } -> std::same_as<int>;
    { fixed.size() } -> std::same_as<int>;
    { fixed.reaches(space) } -> std::same_as<bool>;
    { comm.start_exchange(sends, recvs, stream) } -> exchange_request;
    { comm.split(color, key) } -> std::same_as<std::optional<C>>;
    { comm.duplicate() } -> std::same_as<C>;
    { comm.control_all_gather(text) } -> std::same_as<std::vector<std::string>>;
    { comm.abort(text) } -> std::same_as<void>;
};

/// Starts an exchange and waits for it.
template <communicator C>
void exchange(C& comm, std::span<const send_op> sends, std::span<const recv_op> recvs,
              stream_ref stream = {}) {
    comm.start_exchange(sends, recvs, stream).wait();
}

/// Waits until an exchange is done, on the host even where `wait` would only order it on a stream.
///
/// For policies of whole steps, behind whose messages a model queues more than a device's queue
/// takes: a host that is held up there would not hear of a peer that has failed.
template <exchange_request Request>
void wait_on_host(Request& request) {
    while (!request.wait_until(deadline::max())) {
    }
}

}  // namespace latpar::inline v0

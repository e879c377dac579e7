// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of one process.
#pragma once

#include <latpar/comm/detail/local_request.hpp>

#include <functional>

namespace latpar::inline v0 {

/// One rank of a thread_team.
///
/// A message is one copy from the sender's buffer into the receiver's, made by whichever of the two
/// waits (by both, if large); a send is done when the receiver has it. Waiting threads sleep. It
/// reaches host memory. Different communicators may be used by different threads at once.
/// Errors: comm_error for who waits for a rank that has returned, or destroyed its communicator. An
/// exception that destroys one that `thread_team::communicator` gave aborts it for all; one that was
/// made from another then counts as destroyed only when the rank has left that other, too: who
/// catches the exception and stays calls `abort` first.
class thread_communicator {
public:
    [[nodiscard]] int rank() const noexcept;
    [[nodiscard]] int size() const noexcept;
    [[nodiscard]] bool reaches(memory_space space) const noexcept {
        return space == memory_space::host;
    }
    [[nodiscard]] local_request start_exchange(std::span<const send_op> sends,
                                               std::span<const recv_op> recvs,
                                               stream_ref stream = {});
    [[nodiscard]] std::optional<thread_communicator> split(int color, int key);
    [[nodiscard]] thread_communicator duplicate();
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text);
    void abort(std::string_view reason);

private:
    friend class thread_team;
    explicit thread_communicator(std::shared_ptr<detail::local_seat> seat) noexcept
        : seat_(std::move(seat)) {}

    std::shared_ptr<detail::local_seat> seat_;
};

/// N ranks as N threads of this process.
///
/// The default for an engine that embeds the library, and the test double of the others.
class thread_team {
public:
    /// Errors: usage_error for less than one rank.
    explicit thread_team(int ranks);

    [[nodiscard]] int size() const noexcept { return size_; }

    /// The communicator of one rank, for an engine that owns its threads.
    ///
    /// All that are taken from one team talk to each other; take each rank once, and use it from
    /// one thread at a time. Errors: usage_error for a rank out of range.
    [[nodiscard]] thread_communicator communicator(int rank) const;

    /// Calls `f(communicator)` on every rank, rank 0 on the calling thread, and joins them all.
    ///
    /// Each run has communicators of its own, so a team can run again after one that failed.
    /// Errors: if a rank throws, operations of the others throw comm_error with its message, and
    /// run rethrows the first exception as it was.
    template <std::invocable<thread_communicator&> F>
    void run(F&& f) {
        run_ranks(std::ref(f));
    }

private:
    void run_ranks(const std::function<void(thread_communicator&)>& f) const;

    int size_;
    std::shared_ptr<detail::local_channel> channel_;
};

static_assert(communicator<thread_communicator>);

}  // namespace latpar::inline v0

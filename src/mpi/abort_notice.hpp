// SPDX-License-Identifier: Apache-2.0
// How the ranks of a communicator tell each other that it is aborted.
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latpar::inline v0::mpi::detail {

inline constexpr std::string_view unfinished =
    "an exception passed through an exchange that it left unfinished";

/// How long a rank waits for the message of an exception that another one has on its way, and how
/// long for texts that may be on theirs.
inline constexpr std::chrono::seconds patience_for_reason{5};
inline constexpr std::chrono::seconds patience_for_texts{2};

/// What one rank knows of the abort of one communicator, and tells the others.
///
/// An abort is a message on the control communicator, which waits look for; it also ends everything
/// that was split or duplicated from there, since waits look at all communicators upwards. A send
/// cannot be taken back, and its buffer is the user's: so each rank, once it knows of the abort and
/// has ended all its receives here and below, tells the others that it is quiet, and a wait for a
/// send ends no sooner than the send or the quiet of its receiver.
class abort_notice {
public:
    /// `above` is that of the communicator which this one was made from, and outlives it; null if
    /// there is none. `places_above` has the rank there of each rank here.
    abort_notice(MPI_Comm control, abort_notice* above, std::vector<int> places_above);

    /// Looks at the control communicators: true if this or one above is aborted.
    [[nodiscard]] bool poll();
    /// Whether an abort is known, without a look.
    [[nodiscard]] bool is_known();
    /// Tells the others, once; an empty reason says that it follows.
    void announce(std::string_view reason) {
        announce(reason, reason.empty() ? news::follows : news::aborted);
    }
    /// Tells them that an exception has destroyed the communicator, perhaps one that all ranks throw.
    void announce_unwinding() {
        announce("an exception has destroyed its communicator", news::unwound);
    }
    /// Of one that is known: whether it was announced so.
    [[nodiscard]] bool is_unwinding();
    /// For one that is aborted. Errors: comm_error with the reason; one that is on its way is
    /// waited for.
    [[noreturn]] void throw_reason();

    /// An exchange with receives begins or ends, here: the abort finds this rank quiet, here and
    /// above, when there is none.
    void begin_listening();
    void end_listening();
    /// Whether a rank has said that it is quiet, here or above.
    [[nodiscard]] bool is_quiet(int peer);

private:
    /// What an abort is: of which the reason follows, with it, or with that of a destructor.
    enum class news : char { follows = 'f', aborted = 'a', unwound = 'u' };

    void announce(std::string_view reason, news what);
    void poll_own();
    /// Takes in what a rank has announced. Under the mutex.
    void hear(int source, news what, std::string_view reason);
    void say_quiet_if_so();

    MPI_Comm control_;
    int rank_ = 0;
    int size_ = 0;
    abort_notice* above_;
    std::vector<int> places_above_;

    /// Exchanges with receives in flight, here and below.
    std::atomic<int> listening_ = 0;
    /// Guards what follows: a communicator below may look at it from another thread.
    std::mutex mutex_;
    std::optional<std::string> reason_;
    news what_ = news::aborted;
    std::vector<char> quiet_;
    bool said_quiet_ = false;
};

}  // namespace latpar::inline v0::mpi::detail

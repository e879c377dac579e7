// SPDX-License-Identifier: Apache-2.0
// Saying and hearing of an abort, and of the quiet that follows it.
#include <mpi/abort_notice.hpp>
#include <mpi/check.hpp>
#include <mpi/control.hpp>

#include <chrono>
#include <utility>

namespace latpar::inline v0::mpi::detail {
namespace {

using latpar::detail::concat;

// An abort must leave at once, so its text has to fit an eager message.
constexpr std::size_t longest_reason = 1024;

}  // namespace

abort_notice::abort_notice(MPI_Comm control, abort_notice* above, std::vector<int> places_above)
    : control_(control), above_(above), places_above_(std::move(places_above)) {
    check(MPI_Comm_set_errhandler(control_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(control_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(control_, &size_), "MPI_Comm_size");
    quiet_.resize(static_cast<std::size_t>(size_));
}

void abort_notice::begin_listening() {
    for (abort_notice* n = this; n; n = n->above_) ++n->listening_;
}

void abort_notice::end_listening() {
    for (abort_notice* n = this; n; n = n->above_) {
        if (--n->listening_ == 0) n->say_quiet_if_so();
    }
}

bool abort_notice::is_quiet(int peer) {
    for (abort_notice* n = this; n; n = n->above_) {
        {
            const std::lock_guard lock(n->mutex_);
            if (n->quiet_[static_cast<std::size_t>(peer)]) return true;
        }
        if (n->above_) peer = n->places_above_[static_cast<std::size_t>(peer)];
    }
    return false;
}

void abort_notice::say_quiet_if_so() {
    const std::lock_guard lock(mutex_);
    if (!reason_ || said_quiet_ || listening_ > 0) return;
    said_quiet_ = true;
    for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) continue;
        MPI_Request sent = MPI_REQUEST_NULL;
        MPI_Isend(nullptr, 0, MPI_BYTE, peer, quiet_tag, control_, &sent);
        MPI_Request_free(&sent);
    }
}

void abort_notice::poll_own() {
    {
        const std::lock_guard lock(mutex_);
        int found = 0;
        MPI_Status status;
        check(MPI_Iprobe(MPI_ANY_SOURCE, abort_tag, control_, &found, &status), "MPI_Iprobe");
        if (found) {
            int bytes = 0;
            check(MPI_Get_count(&status, MPI_CHAR, &bytes), "MPI_Get_count");
            std::string text(static_cast<std::size_t>(bytes), '\0');
            check(MPI_Recv(text.data(), bytes, MPI_CHAR, status.MPI_SOURCE, abort_tag, control_,
                           MPI_STATUS_IGNORE),
                  "MPI_Recv");
            hear(status.MPI_SOURCE, static_cast<news>(text.front()),
                 std::string_view(text).substr(1));
        }
        if (!reason_) return;
        while (true) {
            check(MPI_Iprobe(MPI_ANY_SOURCE, quiet_tag, control_, &found, &status), "MPI_Iprobe");
            if (!found) break;
            check(MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, quiet_tag, control_,
                           MPI_STATUS_IGNORE),
                  "MPI_Recv");
            quiet_[static_cast<std::size_t>(status.MPI_SOURCE)] = 1;
        }
    }
    say_quiet_if_so();
}

void abort_notice::hear(int source, news what, std::string_view reason) {
    if (reason_ && what_ != news::follows) return;
    what_ = what;
    reason_ = concat("aborted by rank ", source, " of ", size_, ": ",
                     what == news::follows ? unfinished : reason);
}

bool abort_notice::poll() {
    std::optional<std::string> reason;
    news what = news::follows;
    for (abort_notice* n = this; n; n = n->above_) {
        n->poll_own();
        const std::lock_guard lock(n->mutex_);
        if (!n->reason_ || (reason && (what != news::follows || n->what_ == news::follows))) {
            continue;
        }
        reason = n->reason_;
        what = n->what_;
    }
    if (!reason) return false;
    // From here on this one is aborted itself, whatever becomes of those above.
    const std::lock_guard lock(mutex_);
    // One that is aborted from above is quiet where the abort was said: peers may have left this
    // one.
    if (!reason_) said_quiet_ = true;
    reason_ = std::move(reason);
    what_ = what;
    return true;
}

void abort_notice::announce(std::string_view reason, news what) {
    reason = reason.substr(0, longest_reason);
    auto text = std::make_unique<std::string>(1, static_cast<char>(what));
    text->append(reason);
    std::vector<MPI_Request> sends;
    {
        const std::lock_guard lock(mutex_);
        if (reason_ && what_ != news::follows) return;
        hear(rank_, what, reason);
        for (int peer = 0; peer < size_; ++peer) {
            if (peer == rank_) continue;
            MPI_Isend(text->data(), static_cast<int>(text->size()), MPI_CHAR, peer, abort_tag,
                      control_, &sends.emplace_back(MPI_REQUEST_NULL));
        }
    }
    keep_for_ever(sends, std::move(text));
    say_quiet_if_so();
}

bool abort_notice::is_known() {
    const std::lock_guard lock(mutex_);
    return reason_.has_value();
}

bool abort_notice::is_unwinding() {
    const std::lock_guard lock(mutex_);
    return what_ == news::unwound;
}

void abort_notice::throw_reason() {
    const auto end = std::chrono::steady_clock::now() + patience_for_reason;
    for (unsigned turn = 0;; ++turn) {
        {
            const std::lock_guard lock(mutex_);
            if (what_ != news::follows || std::chrono::steady_clock::now() >= end) {
                what_ = news::aborted;
                throw comm_error(*reason_);
            }
        }
        static_cast<void>(poll());
        relax(turn);
    }
}

}  // namespace latpar::inline v0::mpi::detail

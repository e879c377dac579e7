// SPDX-License-Identifier: Apache-2.0
// Making and splitting channels, and their control channel.
#include <comm/split_members.hpp>
#include <mpi/channel.hpp>
#include <mpi/check.hpp>
#include <mpi/control.hpp>

#include <climits>
#include <exception>
#include <utility>

#if __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif

namespace latpar::inline v0::mpi::detail {

bool mpi_reaches_cuda() noexcept {
#ifdef MPIX_CUDA_AWARE_SUPPORT
    return MPIX_Query_cuda_support() == 1;
#else
    return false;
#endif
}

channel::channel(MPI_Comm payload, MPI_Comm control, std::shared_ptr<channel> parent,
                 std::vector<int> places_in_parent)
    : payload_(payload),
      control_(control),
      parent_(std::move(parent)),
      family_(parent_ ? parent_->family_ : std::make_shared<family>()),
      notice_(control, parent_ ? &parent_->notice_ : nullptr, std::move(places_in_parent)),
      exceptions_(std::uncaught_exceptions()) {
    check(MPI_Comm_set_errhandler(payload_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(payload_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(payload_, &size_), "MPI_Comm_size");
    check(MPI_Query_thread(&provided_), "MPI_Query_thread");
}

channel::~channel() {
    if (is_finalized()) return;
    if (std::uncaught_exceptions() > exceptions_) {
        // Whoever made this one from another is told by that one.
        if (!parent_) notice_.announce_unwinding();
        return;
    }
    if (broken_ || notice_.is_known()) return;
    MPI_Comm_free(&payload_);
    MPI_Comm_free(&control_);
}

void channel::require_usable() {
    require<comm_error>(!is_finalized(),
                        "an mpi::communicator is used after MPI was finalised; keep the "
                        "mpi::environment for as long as its communicators");
    if (provided_ < MPI_THREAD_SERIALIZED) {
        int main_thread = 0;
        check(MPI_Is_thread_main(&main_thread), "MPI_Is_thread_main");
        require(main_thread != 0,
                "an mpi::communicator is used by a second thread, but MPI was initialised for one "
                "(MPI_THREAD_FUNNELED); ask mpi::environment for thread_level::multiple");
    }
    if (broken_) abort(unfinished);
}

void channel::throw_if_aborted() {
    if (!notice_.poll()) return;
    hush();
    notice_.throw_reason();
}

std::vector<std::string> channel::all_gather(std::string_view text, bool all_or_none) {
    require_usable();
    throw_if_aborted();
    auto own = std::make_unique<std::string>(text);
    require(own->size() <= INT_MAX, "a control message of ", own->size(), " bytes is too large");
    std::vector<MPI_Request> sends(static_cast<std::size_t>(size_), MPI_REQUEST_NULL);
    std::vector<std::string> texts(static_cast<std::size_t>(size_));
    try {
        // A rank may have thrown what all throw that have these texts: they are on their way then.
        std::optional<deadline> end;
        const auto may_come = [&] {
            if (!end) end = deadline::clock::now() + patience_for_texts;
            return deadline::clock::now() < *end;
        };
        const auto turn_or_throw = [&](unsigned turn) {
            if (turn % polls_between_looks == 0 && notice_.poll() &&
                !((all_or_none || notice_.is_unwinding()) && may_come())) {
                throw_if_aborted();
            }
            relax(turn);
        };
        for (int peer = 0; peer < size_; ++peer) {
            if (peer == rank_) continue;
            check(MPI_Isend(own->data(), static_cast<int>(own->size()), MPI_CHAR, peer, gather_tag,
                            control_, &sends[static_cast<std::size_t>(peer)]),
                  "MPI_Isend");
        }
        for (int peer = 0; peer < size_; ++peer) {
            std::string& theirs = texts[static_cast<std::size_t>(peer)];
            if (peer == rank_) {
                theirs = *own;
                continue;
            }
            MPI_Message arrived = MPI_MESSAGE_NULL;
            MPI_Status status;
            int found = 0;
            for (unsigned turn = 0; !found; ++turn) {
                check(MPI_Improbe(peer, gather_tag, control_, &found, &arrived, &status),
                      "MPI_Improbe");
                if (!found) turn_or_throw(turn);
            }
            int bytes = 0;
            check(MPI_Get_count(&status, MPI_CHAR, &bytes), "MPI_Get_count");
            theirs.resize(static_cast<std::size_t>(bytes));
            check(MPI_Mrecv(theirs.data(), bytes, MPI_CHAR, &arrived, MPI_STATUS_IGNORE),
                  "MPI_Mrecv");
        }
        int done = 0;
        for (unsigned turn = 0; !done; ++turn) {
            check(MPI_Testall(size_, sends.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
            if (!done) turn_or_throw(turn);
        }
    } catch (...) {
        keep_for_ever(sends, std::move(own));
        throw;
    }
    return texts;
}

std::shared_ptr<channel> channel::split(int color, int key) {
    // MPI_Comm_split cannot be interrupted, so it begins when all ranks are known to come. Those that
    // have all texts are in it already: the others wait for them too, abort or not.
    std::vector<int> places = split_members(all_gather(split_text(color, key), true), color);
    const int mpi_color = color == no_color ? MPI_UNDEFINED : color;
    MPI_Comm payload = MPI_COMM_NULL;
    MPI_Comm control = MPI_COMM_NULL;
    check(MPI_Comm_split(control_, mpi_color, key, &payload), "MPI_Comm_split");
    check(MPI_Comm_split(control_, mpi_color, key, &control), "MPI_Comm_split");
    if (color == no_color) return nullptr;
    return std::make_shared<channel>(payload, control, shared_from_this(), std::move(places));
}

std::shared_ptr<channel> channel::duplicate() {
    return split(0, rank_);
}

void channel::abort(std::string_view reason) {
    if (!is_finalized()) notice_.announce(reason.empty() ? "no reason given" : reason);
}

}  // namespace latpar::inline v0::mpi::detail

// SPDX-License-Identifier: Apache-2.0
// Exchanges over MPI: starting them, waiting for them, ending them early.
#include <latpar/comm/detail/check_operations.hpp>

#include <mpi/channel.hpp>
#include <mpi/check.hpp>
#include <mpi/control.hpp>

#include <algorithm>
#include <climits>
#include <exception>
#include <utility>

namespace latpar::inline v0::mpi::detail {
namespace {

/// A message is one MPI message whatever its size, so that it is counted and matched once.
class message_type {
public:
    explicit message_type(index_t bytes) {
        if (bytes <= INT_MAX) {
            count_ = static_cast<int>(bytes);
            return;
        }
        constexpr index_t block = index_t{1} << 30;
        MPI_Datatype blocks = MPI_DATATYPE_NULL;
        check(MPI_Type_contiguous(static_cast<int>(block), MPI_BYTE, &blocks),
              "MPI_Type_contiguous");
        int lengths[2] = {static_cast<int>(bytes / block), static_cast<int>(bytes % block)};
        MPI_Aint offsets[2] = {0, static_cast<MPI_Aint>(bytes / block * block)};
        MPI_Datatype types[2] = {blocks, MPI_BYTE};
        check(MPI_Type_create_struct(2, lengths, offsets, types, &type_), "MPI_Type_create_struct");
        check(MPI_Type_free(&blocks), "MPI_Type_free");
        check(MPI_Type_commit(&type_), "MPI_Type_commit");
        count_ = 1;
    }
    message_type(const message_type&) = delete;
    message_type& operator=(const message_type&) = delete;
    ~message_type() {
        // MPI keeps it for the messages under way.
        if (type_ != MPI_BYTE) MPI_Type_free(&type_);
    }

    [[nodiscard]] int count() const noexcept { return count_; }
    [[nodiscard]] MPI_Datatype type() const noexcept { return type_; }

private:
    int count_ = 0;
    MPI_Datatype type_ = MPI_BYTE;
};

}  // namespace

message_set& channel::take(std::size_t operations) {
    if (idle_.empty()) {
        sets_.emplace_back().owner = this;
        idle_.reserve(sets_.size());
        idle_.push_back(&sets_.back());
    }
    message_set& set = *idle_.back();
    set.requests.clear();
    set.messages.clear();
    set.self_sends.clear();
    set.self_recvs.clear();
    set.requests.reserve(operations);
    set.messages.reserve(operations);
    set.statuses.resize(operations);
    set.thread = std::this_thread::get_id();
    set.receives = 0;
    set.arrived = false;
    set.lost = false;
    set.failure.clear();
    {
        const std::lock_guard lock(family_->mutex);
        family_->live.push_back(&set);
    }
    idle_.pop_back();
    return set;
}

void channel::give_back(message_set& set) {
    stop_listening(set);
    set.self.reset();
    {
        const std::lock_guard lock(family_->mutex);
        std::erase(family_->live, &set);
    }
    idle_.push_back(&set);
}

request channel::start(std::span<const send_op> sends, std::span<const recv_op> recvs) {
    check_operations(size_, sends, recvs, [this](memory_space space) { return reaches(space); });
    require_usable();
    throw_if_aborted();
    message_set& set = take(sends.size() + recvs.size());
    const auto add = [&](const auto& op) -> MPI_Request* {
        set.messages.push_back({op.peer, op.type, op.count});
        return &set.requests.emplace_back(MPI_REQUEST_NULL);
    };
    // What reaches one memory alone cannot copy between two; all of them go one way, in order.
    const bool copies_own = !reaches(memory_space::cuda);
    try {
        for (const recv_op& op : recvs) {
            if (copies_own && op.peer == rank_) {
                set.self_recvs.push_back(op);
                set.self_recvs.back().peer = 0;
                continue;
            }
            const message_type type(op.bytes());
            check(MPI_Irecv(op.data, type.count(), type.type(), op.peer, MPI_ANY_TAG, payload_,
                            add(op)),
                  "MPI_Irecv");
            ++set.receives;
        }
        if (set.receives > 0) {
            set.listening = true;
            notice_.begin_listening();
        }
        for (const send_op& op : sends) {
            if (copies_own && op.peer == rank_) {
                set.self_sends.push_back(op);
                set.self_sends.back().peer = 0;
                continue;
            }
            const message_type type(op.bytes());
            // Of a short message to itself that is longer than expected, Open MPI cuts off the rest
            // without a word, unless it is synchronous.
            const auto send = op.peer == rank_ ? MPI_Issend : MPI_Isend;
            check(send(op.data, type.count(), type.type(), op.peer, static_cast<int>(op.type),
                       payload_, add(op)),
                  "MPI_Isend");
        }
        if (!set.self_sends.empty() || !set.self_recvs.empty()) {
            set.self.emplace(self_.start_exchange(set.self_sends, set.self_recvs));
        }
    } catch (const std::exception& error) {
        // Half of it is under way: the peers could not know which half.
        abort(error.what());
        settle(set);
        give_back(set);
        throw;
    }
    return {shared_from_this(), &set};
}

bool channel::progress(message_set& set) {
    const int count = static_cast<int>(set.requests.size());
    // Once all has arrived the statuses must stay as they are: another test would empty them.
    if (count == 0 || set.arrived) return true;
    int done = 0;
    const int result = MPI_Testall(count, set.requests.data(), &done, set.statuses.data());
    if (result == MPI_ERR_IN_STATUS) {
        const auto pending = [](const MPI_Status& s) { return s.MPI_ERROR == MPI_ERR_PENDING; };
        set.arrived = std::none_of(set.statuses.begin(), set.statuses.begin() + count, pending);
        return set.arrived;
    }
    if (result != MPI_SUCCESS) {
        set.failure = concat("MPI_Testall failed: ", error_text(result));
        return true;
    }
    if (!done) return false;
    // MPI leaves these alone when there was no error.
    for (MPI_Status& status : set.statuses) status.MPI_ERROR = MPI_SUCCESS;
    set.arrived = true;
    return true;
}

std::string channel::failure_of(const message_set& set) const {
    if (!set.failure.empty()) return set.failure;
    for (std::size_t i = 0; i < set.receives; ++i) {
        const message& expected = set.messages[i];
        const MPI_Status& status = set.statuses[i];
        int error = MPI_SUCCESS;
        MPI_Error_class(status.MPI_ERROR, &error);
        if (error != MPI_SUCCESS && error != MPI_ERR_TRUNCATE) {
            return concat("receiving from rank ", expected.peer, ": ",
                          error_text(status.MPI_ERROR));
        }
        const auto type = static_cast<dtype>(status.MPI_TAG);
        const index_t width = std::max<index_t>(size_of(type), 1);
        const index_t wanted = expected.count * size_of(expected.type);
        MPI_Count bytes = 0;
        MPI_Get_elements_x(&status, MPI_BYTE, &bytes);
        if (error == MPI_SUCCESS && type == expected.type && bytes == wanted) continue;
        const std::string sent =
            error == MPI_SUCCESS ? concat(bytes / width) : concat("more than ", wanted / width);
        return concat("rank ", expected.peer, " sent ", sent, " elements of ", name_of(type),
                      " to rank ", rank_, ", which expected ", expected.count, " of ",
                      name_of(expected.type), "; both sides must name the same count and type");
    }
    return {};
}

void channel::finish(message_set& set) {
    const std::string failure = failure_of(set);
    give_back(set);
    if (!failure.empty()) throw comm_error(failure);
}

bool channel::wait_until(message_set& set, deadline when) {
    if (is_finalized()) {
        // There is nothing left to wait for, nor to give back.
        throw comm_error("an exchange is waited for after MPI was finalised");
    }
    for (unsigned turn = 0;; ++turn) {
        if (!set.lost && progress(set)) {
            stop_listening(set);
            bool done = true;
            try {
                if (set.self) done = set.self->wait_until(when);
            } catch (const comm_error& error) {
                give_back(set);
                throw comm_error(
                    concat("in the messages of rank ", rank_, " to itself: ", error.what()));
            }
            if (!done) return false;
            finish(set);
            return true;
        }
        if (turn % polls_between_looks == 0) {
            if (notice_.poll()) {
                settle(set);
                give_back(set);
                throw_if_aborted();
            }
            if (when != deadline::max() && std::chrono::steady_clock::now() >= when) return false;
        }
        relax(turn);
    }
}

void channel::drop(message_set& set, bool unwinding) noexcept {
    if (is_finalized()) return;
    try {
        if (unwinding) {
            leave_unfinished(set);
        } else {
            static_cast<void>(wait_until(set, deadline::max()));
        }
    } catch (const std::exception&) {
        // Whoever needs to know hears of it from the next operation.
    }
}

void channel::leave_unfinished(message_set& set) {
    if (!set.lost && progress(set)) {
        give_back(set);
        return;
    }
    // Waiting could hang: the peers may need what this rank will never send. The exception is on
    // its way to someone who aborts with its message, so this ends what it can and leaves the words
    // to him.
    cancel_receives(set);
    broken_ = true;
    if (!progress(set)) {
        notice_.announce({});
        settle(set);
    }
    give_back(set);
}

void channel::cancel_receives(message_set& set) {
    set.lost = true;
    for (std::size_t i = 0; i < set.receives; ++i) {
        if (set.requests[i] == MPI_REQUEST_NULL) continue;
        MPI_Cancel(&set.requests[i]);
        // One that was met already goes on to its end instead.
        int done = 0;
        for (unsigned turn = 0; !done; ++turn) {
            MPI_Test(&set.requests[i], &done, MPI_STATUS_IGNORE);
            relax(turn);
        }
    }
    stop_listening(set);
}

void channel::stop_listening(message_set& set) {
    if (std::exchange(set.listening, false)) notice_.end_listening();
}

void channel::hush() {
    std::vector<message_set*> mine;
    {
        const std::lock_guard lock(family_->mutex);
        for (message_set* live : family_->live) {
            const bool here = live->thread == std::this_thread::get_id();
            if (here && !live->lost && live->owner->notice_.poll()) mine.push_back(live);
        }
    }
    for (message_set* live : mine) live->owner->cancel_receives(*live);
}

void channel::settle(message_set& set) {
    cancel_receives(set);
    hush();
    for (unsigned turn = 0;; ++turn) {
        bool settled = true;
        for (std::size_t i = set.receives; i < set.requests.size(); ++i) {
            if (set.requests[i] == MPI_REQUEST_NULL) continue;
            int done = 0;
            MPI_Test(&set.requests[i], &done, MPI_STATUS_IGNORE);
            if (done) continue;
            // Its own receives have ended by now.
            const int peer = set.messages[i].peer;
            if (peer == rank_ || notice_.is_quiet(peer)) {
                MPI_Request_free(&set.requests[i]);
            } else {
                settled = false;
            }
        }
        if (settled) return;
        static_cast<void>(notice_.poll());
        relax(turn);
    }
}

}  // namespace latpar::inline v0::mpi::detail

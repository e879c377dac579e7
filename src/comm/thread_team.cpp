// SPDX-License-Identifier: Apache-2.0
// thread_communicator and the threads of a thread_team.
#include <latpar/comm/thread_team.hpp>

#include <comm/local_channel.hpp>

#include <exception>
#include <thread>
#include <utility>

namespace latpar::inline v0 {

int thread_communicator::rank() const noexcept {
    return seat_->rank();
}

int thread_communicator::size() const noexcept {
    return seat_->channel().size();
}

local_request thread_communicator::start_exchange(std::span<const send_op> sends,
                                                  std::span<const recv_op> recvs, stream_ref) {
    return seat_->channel().start(rank(), sends, recvs);
}

std::optional<thread_communicator> thread_communicator::split(int color, int key) {
    std::shared_ptr<detail::local_seat> seat = seat_->channel().split(rank(), color, key);
    if (!seat) return std::nullopt;
    return thread_communicator(std::move(seat));
}

thread_communicator thread_communicator::duplicate() {
    return thread_communicator(seat_->channel().duplicate(rank()));
}

std::vector<std::string> thread_communicator::control_all_gather(std::string_view text) {
    return seat_->channel().all_gather(rank(), text);
}

void thread_communicator::abort(std::string_view reason) {
    seat_->channel().abort(rank(), reason);
}

thread_team::thread_team(int ranks) : size_(ranks) {
    detail::require(ranks >= 1, "a thread_team of ", ranks, " ranks was asked for; give 1 or more");
    channel_ = std::make_shared<detail::local_channel>(ranks);
}

thread_communicator thread_team::communicator(int rank) const {
    detail::require(rank >= 0 && rank < size_, "rank ", rank, " of a team of ", size_,
                    " was asked for; the last is ", size_ - 1);
    return thread_communicator(std::make_shared<detail::local_seat>(channel_, rank));
}

void thread_team::run_ranks(const std::function<void(thread_communicator&)>& f) const {
    const auto channel = std::make_shared<detail::local_channel>(size_);
    std::mutex mutex;
    std::exception_ptr first;
    bool first_is_echo = false;
    const auto fail = [&](int rank, std::string_view message, bool is_echo) {
        {
            // A rank that was told of an abort may be faster than the one that still unwinds.
            const std::lock_guard lock(mutex);
            if (!first || (first_is_echo && !is_echo)) {
                first = std::current_exception();
                first_is_echo = is_echo;
            }
        }
        channel->abort(rank, message);
    };
    const auto body = [&](int rank) {
        // Left when the others have been told of an exception, and no sooner.
        const auto seat = std::make_shared<detail::local_seat>(channel, rank);
        try {
            thread_communicator comm(seat);
            f(comm);
        } catch (const comm_error& error) {
            fail(rank, error.what(), true);
        } catch (const std::exception& error) {
            fail(rank, error.what(), false);
        } catch (...) {
            fail(rank, "an exception that is not a std::exception", false);
        }
    };
    {
        std::vector<std::jthread> threads;
        threads.reserve(static_cast<std::size_t>(size_));
        try {
            for (int rank = 1; rank < size_; ++rank) threads.emplace_back(body, rank);
            body(0);
        } catch (const std::exception& error) {
            // A thread could not be started: those that were must not wait for it.
            fail(0, error.what(), false);
        }
    }
    if (first) std::rethrow_exception(first);
}

}  // namespace latpar::inline v0

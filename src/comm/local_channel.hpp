// SPDX-License-Identifier: Apache-2.0
// The meeting place of ranks that share an address space.
#pragma once

#include <latpar/comm/detail/local_request.hpp>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>

namespace latpar::inline v0::detail {

/// One operation; an intrusive member of its pair's queue until the other side arrives.
struct local_entry {
    /// Waiting for its match; matched, and any of the two threads may copy; being copied; done; or
    /// withdrawn by either side.
    enum class status : std::uint8_t { queued, matched, copying, done, lost };

    std::byte* data = nullptr;
    index_t count = 0;
    dtype type = dtype::u8;
    int peer = 0;
    bool is_send = false;
    const void* target = nullptr;
    status state = status::queued;
    local_exchange* owner = nullptr;
    local_entry* previous = nullptr;
    local_entry* next = nullptr;
    local_entry* match = nullptr;

    [[nodiscard]] index_t bytes() const noexcept { return count * size_of(type); }
};

/// What one rank started together; taken from a pool and given back, so that traffic allocates
/// nothing once the pool has grown to the most that was ever in flight.
struct local_exchange {
    int rank = 0;
    int pending = 0;
    int claimable = 0;
    std::string failure;
    std::vector<local_entry> entries;
};

class local_channel;

/// The place of one rank in a channel, for as long as anybody may use it. Whoever waits for a rank
/// that has left its place is told.
///
/// If an exception destroys the place in a channel that was not made from another, it aborts that.
/// Below, whoever the exception comes to aborts with its message; if nobody does, the place counts as
/// left when that in the channel above is.
class local_seat {
public:
    /// `is_first`: the channel was not made from another.
    local_seat(std::shared_ptr<local_channel> channel, int rank, bool is_first = true);
    local_seat(const local_seat&) = delete;
    local_seat& operator=(const local_seat&) = delete;
    ~local_seat();

    [[nodiscard]] local_channel& channel() const noexcept { return *channel_; }
    [[nodiscard]] int rank() const noexcept { return rank_; }

private:
    std::shared_ptr<local_channel> channel_;
    int rank_;
    bool is_first_;
    int exceptions_;
};

/// One communicator, seen by all its ranks.
///
/// Everything is guarded by one mutex, but for the copies: those are claimed under the mutex and
/// made outside it, by whichever of the two ranks waits. Every change that a rank may be waiting
/// for ends in `wake`, under the mutex.
class local_channel : public std::enable_shared_from_this<local_channel> {
public:
    explicit local_channel(int size);

    [[nodiscard]] int size() const noexcept { return static_cast<int>(sides_.size()); }

    [[nodiscard]] local_request start(int rank, std::span<const send_op> sends,
                                      std::span<const recv_op> recvs);
    /// True once the exchange is done and given back. Errors: comm_error, and it is given back.
    [[nodiscard]] bool wait_until(local_exchange& exchange, deadline when);
    /// Ends an exchange whose request goes away.
    void drop(local_exchange& exchange, bool unwinding) noexcept;

    [[nodiscard]] std::vector<std::string> all_gather(int rank, std::string_view text);
    /// The seat of this rank in its part; null for no_color.
    [[nodiscard]] std::shared_ptr<local_seat> split(int rank, int color, int key);
    [[nodiscard]] std::shared_ptr<local_seat> duplicate(int rank);
    void abort(int rank, std::string_view reason);

private:
    friend class local_seat;
    using lock_type = std::unique_lock<std::mutex>;

    struct queue {
        local_entry* head = nullptr;
        local_entry* tail = nullptr;
    };
    struct side {
        std::condition_variable wake;
        std::atomic<std::uint32_t> events = 0;
        std::deque<local_exchange> exchanges;
        std::vector<local_exchange*> idle;
        std::uint64_t gathers = 0;
        std::uint64_t splits = 0;
        bool broken = false;
        int seats = 0;
        bool gone = false;
        /// Its rank in each channel below, and the other way round whether it has left above.
        std::vector<std::pair<std::weak_ptr<local_channel>, int>> below;
        bool gone_above = false;
    };
    struct gathering {
        std::vector<std::string> texts;
        int arrived = 0;
        int left = 0;
    };
    struct forming {
        std::shared_ptr<local_channel> channel;
        int missing = 0;
    };

    [[nodiscard]] queue& queue_of(const local_entry& entry) noexcept;
    [[nodiscard]] local_exchange& take(int rank, std::size_t entries);
    void give_back(local_exchange& exchange);
    void post(local_entry& entry);
    void meet(local_entry& send, local_entry& recv);
    void complete(local_entry& entry);
    void unlink(local_entry& entry) noexcept;
    [[nodiscard]] bool copy_some(local_exchange& exchange, lock_type& lock);
    void withdraw(local_exchange& exchange, lock_type& lock);
    void pause(int rank, deadline when, lock_type& lock);
    void wake(int rank);
    void require_usable(int rank);
    void abort(const std::string& text);
    /// `rank_there` is that in the part.
    [[nodiscard]] std::shared_ptr<local_seat> join(int rank, std::uint64_t number, int color,
                                                   int size, int rank_there);
    void enter(int rank);
    void leave(int rank, bool by_exception);
    /// It has left the channel above.
    void leave_from_above(int rank);
    void be_gone(int rank);
    [[nodiscard]] std::string text_of_gone(int rank, int peer) const;

    std::mutex mutex_;
    std::vector<queue> queues_;
    std::deque<side> sides_;
    gathering gatherings_[2];
    std::map<std::pair<std::uint64_t, int>, forming> forming_;
    std::vector<std::weak_ptr<local_channel>> children_;
    std::optional<std::string> reason_;
    int gone_ = 0;
    int yields_ = 0;
};

}  // namespace latpar::inline v0::detail

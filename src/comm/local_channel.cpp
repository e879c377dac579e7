// SPDX-License-Identifier: Apache-2.0
// Matching, copying, waiting and aborting among the ranks of one process.
#include <latpar/comm/detail/check_operations.hpp>

#include <comm/local_channel.hpp>
#include <comm/split_members.hpp>

#include <algorithm>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

namespace latpar::inline v0 {
namespace detail {
namespace {

using status = local_entry::status;

// Below this a copy costs less than waking a second thread for it.
constexpr index_t copy_at_once = 16 * 1024;

/// What two sides say differently of a message; empty if nothing.
std::string disagreement_of(const local_entry& send, const local_entry& recv) {
    if (send.count != recv.count || send.type != recv.type) {
        return concat("rank ", send.owner->rank, " sent ", send.count, " elements of ",
                      name_of(send.type), " to rank ", recv.owner->rank, ", which expected ",
                      recv.count, " of ", name_of(recv.type),
                      "; both sides must name the same count and type");
    }
    if (send.count > 0 && send.target != recv.target) {
        return concat("rank ", send.owner->rank, " sent a message ",
                      send.target ? "with" : "without", " a target to rank ", recv.owner->rank,
                      ", which expected it ", recv.target ? "with" : "without",
                      " one, or elsewhere; both sides must name the same");
    }
    return {};
}

}  // namespace

local_seat::local_seat(std::shared_ptr<local_channel> channel, int rank, bool is_first)
    : channel_(std::move(channel)),
      rank_(rank),
      is_first_(is_first),
      exceptions_(std::uncaught_exceptions()) {
    channel_->enter(rank);
}

local_seat::~local_seat() {
    const bool by_exception = std::uncaught_exceptions() > exceptions_;
    if (by_exception && is_first_) {
        channel_->abort(rank_, "an exception has destroyed its communicator");
    }
    channel_->leave(rank_, by_exception);
}

local_channel::local_channel(int size)
    : queues_(static_cast<std::size_t>(size) * static_cast<std::size_t>(size)),
      sides_(static_cast<std::size_t>(size)),
      yields_(static_cast<int>(std::thread::hardware_concurrency()) >= size ? 64 : 0) {
    for (gathering& round : gatherings_) round.texts.resize(sides_.size());
}

local_channel::queue& local_channel::queue_of(const local_entry& entry) noexcept {
    const int from = entry.is_send ? entry.owner->rank : entry.peer;
    const int to = entry.is_send ? entry.peer : entry.owner->rank;
    return queues_[static_cast<std::size_t>(from) * sides_.size() + static_cast<std::size_t>(to)];
}

void local_channel::wake(int rank) {
    side& mine = sides_[static_cast<std::size_t>(rank)];
    mine.events.fetch_add(1, std::memory_order_release);
    mine.wake.notify_all();
}

void local_channel::require_usable(int rank) {
    if (sides_[static_cast<std::size_t>(rank)].broken) {
        abort(rank, "an exception passed through an exchange that it left unfinished");
    }
}

local_exchange& local_channel::take(int rank, std::size_t entries) {
    side& mine = sides_[static_cast<std::size_t>(rank)];
    if (mine.idle.empty()) {
        mine.exchanges.emplace_back().rank = rank;
        // So that giving back never allocates.
        mine.idle.reserve(mine.exchanges.size());
        mine.idle.push_back(&mine.exchanges.back());
    }
    local_exchange& exchange = *mine.idle.back();
    exchange.entries.assign(entries, {});
    mine.idle.pop_back();
    exchange.pending = static_cast<int>(entries);
    exchange.claimable = 0;
    exchange.failure.clear();
    return exchange;
}

void local_channel::give_back(local_exchange& exchange) {
    sides_[static_cast<std::size_t>(exchange.rank)].idle.push_back(&exchange);
}

local_request local_channel::start(int rank, std::span<const send_op> sends,
                                   std::span<const recv_op> recvs) {
    check_operations(size(), sends, recvs,
                     [](memory_space space) { return space == memory_space::host; });
    require_usable(rank);
    const lock_type lock(mutex_);
    if (reason_) throw comm_error(*reason_);
    local_exchange& exchange = take(rank, sends.size() + recvs.size());
    // Receives first: a waiting thread serves its own incoming messages before the others'.
    std::size_t next = 0;
    const auto fill = [&](auto* data, const auto& op, bool is_send, const void* target) {
        local_entry& entry = exchange.entries[next++];
        entry.data = static_cast<std::byte*>(const_cast<void*>(static_cast<const void*>(data)));
        entry.count = op.count;
        entry.type = op.type;
        entry.peer = op.peer;
        entry.is_send = is_send;
        entry.target = target;
        entry.owner = &exchange;
    };
    for (const recv_op& op : recvs) fill(op.data, op, false, op.is_target ? op.data : nullptr);
    for (const send_op& op : sends) fill(op.data, op, true, op.target);
    for (local_entry& entry : exchange.entries) post(entry);
    return {shared_from_this(), &exchange};
}

void local_channel::post(local_entry& entry) {
    queue& line = queue_of(entry);
    if (line.head && line.head->is_send != entry.is_send) {
        local_entry& first = *line.head;
        unlink(first);
        meet(entry.is_send ? entry : first, entry.is_send ? first : entry);
        return;
    }
    entry.previous = line.tail;
    (line.tail ? line.tail->next : line.head) = &entry;
    line.tail = &entry;
}

void local_channel::unlink(local_entry& entry) noexcept {
    queue& line = queue_of(entry);
    (entry.previous ? entry.previous->next : line.head) = entry.next;
    (entry.next ? entry.next->previous : line.tail) = entry.previous;
    entry.previous = entry.next = nullptr;
}

void local_channel::meet(local_entry& send, local_entry& recv) {
    if (std::string failure = disagreement_of(send, recv); !failure.empty()) {
        send.owner->failure = failure;
        recv.owner->failure = std::move(failure);
    } else if (send.bytes() > copy_at_once) {
        send.match = &recv;
        recv.match = &send;
        for (local_entry* entry : {&send, &recv}) {
            entry->state = status::matched;
            ++entry->owner->claimable;
            wake(entry->owner->rank);
        }
        return;
    } else if (send.count > 0) {
        std::memcpy(recv.data, send.data, static_cast<std::size_t>(send.bytes()));
    }
    complete(send);
    complete(recv);
}

void local_channel::complete(local_entry& entry) {
    // Whoever withdraws waits for a copy alone, everyone else for the whole exchange.
    const bool was_copied = std::exchange(entry.state, status::done) == status::copying;
    if (--entry.owner->pending == 0 || was_copied) wake(entry.owner->rank);
}

bool local_channel::copy_some(local_exchange& exchange, lock_type& lock) {
    if (exchange.claimable == 0) return false;
    for (local_entry& entry : exchange.entries) {
        if (entry.state != status::matched) continue;
        local_entry& send = entry.is_send ? entry : *entry.match;
        local_entry& recv = *send.match;
        for (local_entry* both : {&send, &recv}) {
            both->state = status::copying;
            --both->owner->claimable;
        }
        lock.unlock();
        std::memcpy(recv.data, send.data, static_cast<std::size_t>(recv.bytes()));
        lock.lock();
        complete(send);
        complete(recv);
        return true;
    }
    return false;
}

void local_channel::withdraw(local_exchange& exchange, lock_type& lock) {
    for (local_entry& entry : exchange.entries) {
        if (entry.state == status::queued) {
            unlink(entry);
            entry.state = status::lost;
        } else if (entry.state == status::matched) {
            for (local_entry* both : {entry.match, &entry}) {
                both->state = status::lost;
                --both->owner->claimable;
            }
        }
        // The other thread is at it; a copy comes to its end whatever happens.
        while (entry.state == status::copying) pause(exchange.rank, deadline::max(), lock);
    }
}

void local_channel::pause(int rank, deadline when, lock_type& lock) {
    side& mine = sides_[static_cast<std::size_t>(rank)];
    const std::uint32_t seen = mine.events.load(std::memory_order_relaxed);
    if (yields_ > 0) {
        lock.unlock();
        for (int i = 0; i < yields_ && mine.events.load(std::memory_order_acquire) == seen; ++i) {
            std::this_thread::yield();
        }
        lock.lock();
        if (mine.events.load(std::memory_order_relaxed) != seen) return;
    }
    if (when == deadline::max()) {
        mine.wake.wait(lock);
    } else {
        mine.wake.wait_until(lock, when);
    }
}

bool local_channel::wait_until(local_exchange& exchange, deadline when) {
    lock_type lock(mutex_);
    const auto fail = [&](const std::string& why) {
        withdraw(exchange, lock);
        give_back(exchange);
        throw comm_error(why);
    };
    while (true) {
        while (copy_some(exchange, lock)) {
        }
        if (exchange.pending == 0) {
            give_back(exchange);
            if (!exchange.failure.empty()) throw comm_error(exchange.failure);
            return true;
        }
        if (reason_) fail(*reason_);
        for (const local_entry& entry : exchange.entries) {
            if (gone_ == 0) break;
            const bool is_waiting = entry.state == status::queued || entry.state == status::lost;
            if (is_waiting && sides_[static_cast<std::size_t>(entry.peer)].gone) {
                fail(text_of_gone(exchange.rank, entry.peer));
            }
        }
        if (when == deadline::max()) {
            // The one thread that could start the other side is this one.
            for (const local_entry& entry : exchange.entries) {
                if (entry.state == status::queued && entry.peer == exchange.rank) {
                    fail(concat("rank ", exchange.rank, " waits for ",
                                entry.is_send ? "a receive from" : "a send to",
                                " itself that it has not started; start both, then wait"));
                }
            }
        } else if (std::chrono::steady_clock::now() >= when) {
            return false;
        }
        pause(exchange.rank, when, lock);
    }
}

void local_channel::drop(local_exchange& exchange, bool unwinding) noexcept {
    if (!unwinding) {
        try {
            static_cast<void>(wait_until(exchange, deadline::max()));
        } catch (const comm_error&) {
            // Whoever needs to know hears of it from the next operation.
        }
        return;
    }
    lock_type lock(mutex_);
    while (copy_some(exchange, lock)) {
    }
    if (exchange.pending > 0) {
        // Waiting could hang: the peers may need what this rank will never send. The exception is
        // on its way to someone who aborts with its message, so this does not abort with a worse
        // one.
        withdraw(exchange, lock);
        sides_[static_cast<std::size_t>(exchange.rank)].broken = true;
    }
    give_back(exchange);
}

std::vector<std::string> local_channel::all_gather(int rank, std::string_view text) {
    require_usable(rank);
    lock_type lock(mutex_);
    if (reason_) throw comm_error(*reason_);
    // Two rounds suffice: who enters round n has seen all arrive at n - 1, hence leave n - 2.
    side& mine = sides_[static_cast<std::size_t>(rank)];
    gathering& round = gatherings_[mine.gathers++ % 2];
    round.texts[static_cast<std::size_t>(rank)] = text;
    if (++round.arrived == size()) {
        for (int peer = 0; peer < size(); ++peer) wake(peer);
    }
    while (round.arrived < size()) {
        if (reason_) throw comm_error(*reason_);
        for (int peer = 0; peer < size() && gone_ > 0; ++peer) {
            const side& theirs = sides_[static_cast<std::size_t>(peer)];
            if (theirs.gone && theirs.gathers < mine.gathers) {
                // As if it had never come, for whoever tries again.
                --round.arrived;
                --mine.gathers;
                throw comm_error(text_of_gone(rank, peer));
            }
        }
        pause(rank, deadline::max(), lock);
    }
    std::vector<std::string> out = round.texts;
    if (++round.left == size()) round.arrived = round.left = 0;
    return out;
}

std::shared_ptr<local_seat> local_channel::join(int rank, std::uint64_t number, int color, int size,
                                                int rank_there) {
    const lock_type lock(mutex_);
    if (reason_) throw comm_error(*reason_);
    forming& part = forming_[{number, color}];
    if (!part.channel) {
        part = {std::make_shared<local_channel>(size), size};
        std::erase_if(children_, [](const auto& child) { return child.expired(); });
        children_.push_back(part.channel);
        // Into a part all have agreed to go; those that have left enter no duplicate, unless they
        // come back.
        for (int peer = 0; peer < this->size() && color == no_color; ++peer) {
            if (sides_[static_cast<std::size_t>(peer)].gone) part.channel->leave_from_above(peer);
        }
    }
    auto& below = sides_[static_cast<std::size_t>(rank)].below;
    std::erase_if(below, [](const auto& one) { return one.first.expired(); });
    below.emplace_back(part.channel, rank_there);
    auto out = std::make_shared<local_seat>(part.channel, rank_there, false);
    if (--part.missing == 0) forming_.erase({number, color});
    return out;
}

std::shared_ptr<local_seat> local_channel::split(int rank, int color, int key) {
    const std::vector<int> members = split_members(all_gather(rank, split_text(color, key)), color);
    const std::uint64_t number = sides_[static_cast<std::size_t>(rank)].splits++;
    if (color == no_color) return nullptr;
    const auto place = std::find(members.begin(), members.end(), rank);
    return join(rank, number, color, static_cast<int>(members.size()),
                static_cast<int>(place - members.begin()));
}

std::shared_ptr<local_seat> local_channel::duplicate(int rank) {
    require_usable(rank);
    return join(rank, sides_[static_cast<std::size_t>(rank)].splits++, no_color, size(), rank);
}

void local_channel::enter(int rank) {
    const lock_type lock(mutex_);
    side& mine = sides_[static_cast<std::size_t>(rank)];
    ++mine.seats;
    gone_ -= std::exchange(mine.gone, false) ? 1 : 0;
    mine.gone_above = false;
}

void local_channel::leave(int rank, bool by_exception) {
    const lock_type lock(mutex_);
    side& mine = sides_[static_cast<std::size_t>(rank)];
    if (--mine.seats == 0 && (!by_exception || mine.gone_above)) be_gone(rank);
}

void local_channel::leave_from_above(int rank) {
    const lock_type lock(mutex_);
    side& theirs = sides_[static_cast<std::size_t>(rank)];
    theirs.gone_above = true;
    if (theirs.seats == 0 && !theirs.gone) be_gone(rank);
}

void local_channel::be_gone(int rank) {
    side& mine = sides_[static_cast<std::size_t>(rank)];
    mine.gone = true;
    ++gone_;
    // Of duplicates it made its own or never will.
    for (const auto& [key, part] : forming_) {
        if (key.second == no_color && key.first >= mine.splits) {
            part.channel->leave_from_above(rank);
        }
    }
    for (const auto& [weak, rank_there] : mine.below) {
        if (const auto channel = weak.lock()) channel->leave_from_above(rank_there);
    }
    for (int peer = 0; peer < size(); ++peer) wake(peer);
}

std::string local_channel::text_of_gone(int rank, int peer) const {
    return concat("rank ", rank, " waits for rank ", peer, " of ", size(),
                  ", which has returned or given its communicator up; every rank must make the "
                  "same calls");
}

void local_channel::abort(int rank, std::string_view reason) {
    abort(concat("aborted by rank ", rank, " of ", size(), ": ", reason));
}

void local_channel::abort(const std::string& text) {
    const lock_type lock(mutex_);
    if (reason_) return;
    reason_ = text;
    // Under the lock: who sees this one aborted shall find those below aborted too.
    for (const auto& weak : children_) {
        if (const auto child = weak.lock()) child->abort(text);
    }
    for (int rank = 0; rank < size(); ++rank) wake(rank);
}

}  // namespace detail

local_request::local_request(std::shared_ptr<detail::local_channel> channel,
                             detail::local_exchange* exchange) noexcept
    : channel_(std::move(channel)), exchange_(exchange), exceptions_(std::uncaught_exceptions()) {}

local_request::local_request(local_request&& other) noexcept
    : channel_(std::move(other.channel_)),
      exchange_(std::exchange(other.exchange_, nullptr)),
      exceptions_(other.exceptions_) {}

local_request& local_request::operator=(local_request&& other) noexcept {
    if (this == &other) return *this;
    const local_request old(std::move(*this));
    channel_ = std::move(other.channel_);
    exchange_ = std::exchange(other.exchange_, nullptr);
    exceptions_ = other.exceptions_;
    return *this;
}

local_request::~local_request() {
    if (exchange_) channel_->drop(*exchange_, std::uncaught_exceptions() > exceptions_);
}

bool local_request::test() {
    return wait_until(deadline::min());
}

void local_request::wait() {
    static_cast<void>(wait_until(deadline::max()));
}

bool local_request::wait_until(deadline when) {
    if (!exchange_) return true;
    detail::local_exchange* exchange = std::exchange(exchange_, nullptr);
    if (channel_->wait_until(*exchange, when)) return true;
    exchange_ = exchange;
    return false;
}

}  // namespace latpar::inline v0

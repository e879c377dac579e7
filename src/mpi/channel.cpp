// SPDX-License-Identifier: Apache-2.0
// Starting, waiting, aborting and the control channel over MPI.
#include <latpar/comm/detail/check_operations.hpp>

#include <mpi/channel.hpp>
#include <mpi/check.hpp>

#include <algorithm>
#include <climits>
#include <exception>
#include <utility>

namespace latpar::inline v0::mpi::detail {
namespace {

// Tags of the control communicator, out of the range of those of payload, which are dtypes.
constexpr int gather_tag = 100;
constexpr int abort_tag = 101;
constexpr int quiet_tag = 102;

// An abort must leave at once, so its text has to fit an eager message.
constexpr std::size_t longest_reason = 1024;

// How long a rank waits for the message of an exception that another one has on its way.
constexpr std::chrono::seconds patience{5};

constexpr std::string_view unfinished =
    "an exception passed through an exchange that it left unfinished";

// Looking for an abort costs more than looking for progress.
constexpr int polls_between_looks = 32;

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

void relax(unsigned turn) {
    // More ranks than cores must not starve each other; the first turns are for latency.
    if (turn > 100) std::this_thread::yield();
}

}  // namespace

channel::channel(MPI_Comm payload, MPI_Comm control, std::shared_ptr<channel> parent,
                 std::vector<int> places_in_parent)
    : payload_(payload),
      control_(control),
      parent_(std::move(parent)),
      places_in_parent_(std::move(places_in_parent)),
      family_(parent_ ? parent_->family_ : std::make_shared<family>()) {
    for (const MPI_Comm comm : {payload_, control_}) {
        check(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    }
    check(MPI_Comm_rank(payload_, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(payload_, &size_), "MPI_Comm_size");
    check(MPI_Query_thread(&provided_), "MPI_Query_thread");
    quiet_.resize(static_cast<std::size_t>(size_));
}

channel::~channel() {
    if (is_finalized() || reason_ || broken_) return;
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
    check_operations(size_, sends, recvs,
                     [](memory_space space) { return space == memory_space::host; });
    require_usable();
    throw_if_aborted();
    message_set& set = take(sends.size() + recvs.size());
    const auto add = [&](const auto& op) -> MPI_Request* {
        set.messages.push_back({op.peer, op.type, op.count});
        return &set.requests.emplace_back(MPI_REQUEST_NULL);
    };
    try {
        for (const recv_op& op : recvs) {
            if (op.peer == rank_) {
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
            for (channel* c = this; c; c = c->parent_.get()) ++c->listening_;
        }
        for (const send_op& op : sends) {
            if (op.peer == rank_) {
                set.self_sends.push_back(op);
                set.self_sends.back().peer = 0;
                continue;
            }
            const message_type type(op.bytes());
            check(MPI_Isend(op.data, type.count(), type.type(), op.peer, static_cast<int>(op.type),
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
            if (poll()) {
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
        announce({});
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
    if (!std::exchange(set.listening, false)) return;
    for (channel* c = this; c; c = c->parent_.get()) {
        if (--c->listening_ == 0) c->say_quiet_if_so();
    }
}

void channel::hush() {
    std::vector<message_set*> mine;
    {
        const std::lock_guard lock(family_->mutex);
        for (message_set* live : family_->live) {
            const bool here = live->thread == std::this_thread::get_id();
            if (here && !live->lost && live->owner->poll()) mine.push_back(live);
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
            if (is_quiet(set.messages[i].peer)) {
                MPI_Request_free(&set.requests[i]);
            } else {
                settled = false;
            }
        }
        if (settled) return;
        static_cast<void>(poll());
        relax(turn);
    }
}

bool channel::is_quiet(int peer) {
    for (channel* c = this; c; c = c->parent_.get()) {
        {
            const std::lock_guard lock(c->mutex_);
            if (c->quiet_[static_cast<std::size_t>(peer)]) return true;
        }
        if (c->parent_) peer = c->places_in_parent_[static_cast<std::size_t>(peer)];
    }
    return false;
}

void channel::say_quiet_if_so() {
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

void channel::poll_own() {
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
            hear(status.MPI_SOURCE, text);
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

void channel::hear(int source, std::string_view text) {
    if (reason_ && !provisional_) return;
    provisional_ = text.empty();
    reason_ =
        concat("aborted by rank ", source, " of ", size_, ": ", provisional_ ? unfinished : text);
}

bool channel::poll() {
    std::optional<std::string> reason;
    bool provisional = false;
    for (channel* c = this; c; c = c->parent_.get()) {
        c->poll_own();
        const std::lock_guard lock(c->mutex_);
        if (!c->reason_ || (reason && (!provisional || c->provisional_))) continue;
        reason = c->reason_;
        provisional = c->provisional_;
    }
    if (!reason) return false;
    // From here on this channel is aborted itself, whatever becomes of those above.
    const std::lock_guard lock(mutex_);
    // One that is aborted from above is quiet where the abort was said: peers may have left this
    // one.
    if (!reason_) said_quiet_ = true;
    reason_ = std::move(reason);
    provisional_ = provisional;
    return true;
}

void channel::throw_if_aborted() {
    if (!poll()) return;
    hush();
    const deadline end = std::chrono::steady_clock::now() + patience;
    for (unsigned turn = 0;; ++turn) {
        {
            const std::lock_guard lock(mutex_);
            if (std::chrono::steady_clock::now() >= end) provisional_ = false;
            if (!provisional_) throw comm_error(*reason_);
        }
        static_cast<void>(poll());
        relax(turn);
    }
}

void channel::keep_for_ever(std::vector<MPI_Request>& requests, std::unique_ptr<std::string> text) {
    bool all_done = true;
    for (MPI_Request& sent : requests) {
        int done = 0;
        MPI_Test(&sent, &done, MPI_STATUS_IGNORE);
        if (done) continue;
        all_done = false;
        MPI_Request_free(&sent);
    }
    // MPI may read it until the process ends, and nobody will ever know whether it has.
    if (!all_done) static_cast<void>(text.release());
}

std::vector<std::string> channel::all_gather(std::string_view text) {
    require_usable();
    throw_if_aborted();
    auto own = std::make_unique<std::string>(text);
    require(own->size() <= INT_MAX, "a control message of ", own->size(), " bytes is too large");
    std::vector<MPI_Request> sends(static_cast<std::size_t>(size_), MPI_REQUEST_NULL);
    std::vector<std::string> texts(static_cast<std::size_t>(size_));
    try {
        const auto turn_or_throw = [&](unsigned turn) {
            if (turn % polls_between_looks == 0) throw_if_aborted();
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
    // MPI_Comm_split cannot be interrupted, so it begins when all ranks are known to be there.
    const std::vector<std::string> texts = all_gather(concat(color, ' ', key));
    std::vector<std::pair<int, int>> members;
    for (int peer = 0; peer < size_; ++peer) {
        int its_color = 0;
        int its_key = 0;
        std::istringstream(texts[static_cast<std::size_t>(peer)]) >> its_color >> its_key;
        require(its_color >= no_color, "rank ", peer, " splits with color ", its_color,
                "; a color is zero or more, or no_color (-1) to stay out");
        if (its_color == color) members.emplace_back(its_key, peer);
    }
    std::sort(members.begin(), members.end());
    const int mpi_color = color == no_color ? MPI_UNDEFINED : color;
    MPI_Comm payload = MPI_COMM_NULL;
    MPI_Comm control = MPI_COMM_NULL;
    check(MPI_Comm_split(control_, mpi_color, key, &payload), "MPI_Comm_split");
    check(MPI_Comm_split(control_, mpi_color, key, &control), "MPI_Comm_split");
    if (color == no_color) return nullptr;
    std::vector<int> places;
    for (const auto& member : members) places.push_back(member.second);
    return std::make_shared<channel>(payload, control, shared_from_this(), std::move(places));
}

std::shared_ptr<channel> channel::duplicate() {
    return split(0, rank_);
}

void channel::abort(std::string_view reason) {
    if (!is_finalized()) announce(reason.empty() ? "no reason given" : reason);
}

void channel::announce(std::string_view reason) {
    auto text = std::make_unique<std::string>(reason.substr(0, longest_reason));
    std::vector<MPI_Request> sends;
    {
        const std::lock_guard lock(mutex_);
        if (reason_ && !provisional_) return;
        hear(rank_, *text);
        for (int peer = 0; peer < size_; ++peer) {
            if (peer == rank_) continue;
            MPI_Isend(text->data(), static_cast<int>(text->size()), MPI_CHAR, peer, abort_tag,
                      control_, &sends.emplace_back(MPI_REQUEST_NULL));
        }
    }
    keep_for_ever(sends, std::move(text));
    say_quiet_if_so();
}

}  // namespace latpar::inline v0::mpi::detail

// SPDX-License-Identifier: Apache-2.0
// One communicator as seen by one MPI process.
#pragma once

#include <latpar/comm/self.hpp>
#include <latpar/mpi/communicator.hpp>

#include <mpi/abort_notice.hpp>

#include <deque>
#include <mutex>
#include <thread>

namespace latpar::inline v0::mpi::detail {

using namespace latpar::detail;

/// What a receive was told to expect, or whom a send goes to.
struct message {
    int peer = 0;
    dtype type = dtype::u8;
    index_t count = 0;
};

/// What one rank started together; taken from a pool, so that traffic allocates nothing of ours.
struct message_set {
    channel* owner = nullptr;
    std::thread::id thread;
    /// Receives first, then sends.
    std::vector<MPI_Request> requests;
    std::vector<MPI_Status> statuses;
    std::vector<message> messages;
    std::size_t receives = 0;
    /// All requests are done, their statuses kept.
    bool arrived = false;
    /// Receives that peers must still be told about.
    bool listening = false;
    /// Some receives were cancelled.
    bool lost = false;
    std::string failure;
    std::vector<send_op> self_sends;
    std::vector<recv_op> self_recvs;
    std::optional<local_request> self;
};

/// Whether this MPI takes pointers to CUDA memory, as it says itself; false for one that says
/// nothing.
[[nodiscard]] bool mpi_reaches_cuda() noexcept;

/// What all communicators made from one another share: which exchanges are in flight.
struct family {
    const bool reaches_cuda = mpi_reaches_cuda();
    std::mutex mutex;
    std::vector<message_set*> live;
};

/// One communicator.
///
/// One that was not made from another is aborted if an exception destroys it. A channel that an
/// exception destroys, or that is aborted or broken, never frees its MPI communicators, or their
/// identity could be given to new ones that would receive what is still under way.
class channel : public std::enable_shared_from_this<channel> {
public:
    /// Takes both over. `parent` is what it was made from, or null; `places_in_parent` has the rank
    /// there of each rank here.
    channel(MPI_Comm payload, MPI_Comm control, std::shared_ptr<channel> parent,
            std::vector<int> places_in_parent);
    channel(const channel&) = delete;
    channel& operator=(const channel&) = delete;
    ~channel();

    [[nodiscard]] int rank() const noexcept { return rank_; }
    [[nodiscard]] int size() const noexcept { return size_; }
    [[nodiscard]] bool reaches(memory_space space) const noexcept {
        return space == memory_space::host || family_->reaches_cuda;
    }
    [[nodiscard]] MPI_Comm payload() const noexcept { return payload_; }
    [[nodiscard]] MPI_Comm control() const noexcept { return control_; }

    [[nodiscard]] request start(std::span<const send_op> sends, std::span<const recv_op> recvs);
    /// True once all is done and given back. Errors: comm_error, and it is given back.
    [[nodiscard]] bool wait_until(message_set& set, deadline when);
    void drop(message_set& set, bool unwinding) noexcept;

    /// `all_or_none`: as far as can be, an abort that is heard meanwhile does not end it on some ranks
    /// alone.
    [[nodiscard]] std::vector<std::string> all_gather(std::string_view text,
                                                      bool all_or_none = false);
    [[nodiscard]] std::shared_ptr<channel> split(int color, int key);
    [[nodiscard]] std::shared_ptr<channel> duplicate();
    void abort(std::string_view reason);

private:
    void require_usable();
    void throw_if_aborted();

    [[nodiscard]] message_set& take(std::size_t operations);
    void give_back(message_set& set);
    [[nodiscard]] bool progress(message_set& set);
    [[nodiscard]] std::string failure_of(const message_set& set) const;
    void finish(message_set& set);
    /// Ends an exchange that an exception passes through.
    void leave_unfinished(message_set& set);
    void cancel_receives(message_set& set);
    void stop_listening(message_set& set);
    /// Ends all receives of this thread that an abort reaches, so that the peers hear it is quiet.
    void hush();
    /// Ends an exchange: returns when no peer can touch its buffers.
    void settle(message_set& set);

    MPI_Comm payload_;
    MPI_Comm control_;
    int rank_ = 0;
    int size_ = 0;
    int provided_ = MPI_THREAD_SINGLE;
    std::shared_ptr<channel> parent_;
    std::shared_ptr<family> family_;
    abort_notice notice_;
    self_communicator self_;
    std::deque<message_set> sets_;
    std::vector<message_set*> idle_;
    bool broken_ = false;
    int exceptions_;
};

}  // namespace latpar::inline v0::mpi::detail

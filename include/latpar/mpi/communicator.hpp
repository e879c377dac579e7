// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes of an MPI job.
#pragma once

#include <latpar/comm/communicator.hpp>

#include <mpi.h>

#include <memory>

namespace latpar::inline v0::mpi {

namespace detail {
class channel;
struct message_set;
}  // namespace detail

/// An exchange in flight among processes.
///
/// A wait also listens for an abort, and then returns only when no peer can touch the buffers any
/// more.
class request {
public:
    request(request&& other) noexcept;
    request& operator=(request&& other) noexcept;
    ~request();

    [[nodiscard]] bool test();
    void wait();
    [[nodiscard]] bool wait_until(deadline when);

private:
    friend class detail::channel;
    request(std::shared_ptr<detail::channel> channel, detail::message_set* messages) noexcept;

    std::shared_ptr<detail::channel> channel_;
    detail::message_set* messages_ = nullptr;
    int exceptions_ = 0;
};

/// One rank of an MPI communicator.
///
/// Payload and control travel on two MPI communicators of its own, so that nothing meets the
/// caller's messages. One message is one MPI message, whatever its size; self-messages are copied
/// without MPI where it reaches host memory alone. A message of a wrong size or type is a
/// comm_error on the receiver only. Several threads may use different communicators at once with
/// MPI_THREAD_MULTIPLE; otherwise only the thread that initialised MPI may.
///
/// An exception that destroys a communicator which was not made from another aborts it, so that its
/// peers do not wait in vain; `guarded` does so with the message. What all ranks refuse alike, in an
/// agreement, stays the error of each: who still waits for texts then does so for 2 s at most before
/// it throws the abort. To try again with the same communicator, make it outside of the `try`. MPI's
/// communicators under one that an exception destroys, or that was aborted, are never freed.
///
/// It reaches host memory, and CUDA memory if this MPI says at run time that it does (Open MPI's
/// MPIX_Query_cuda_support). MPI knows no streams: whatever is queued for CUDA memory of an
/// exchange has been waited for before it is started, and what arrived is there after the wait.
/// `cuda::staged` around it does that waiting, and serves any MPI.
class communicator {
public:
    /// MPI_COMM_WORLD, duplicated. Ranks: All of it. Errors: usage_error before MPI is
    /// initialised: see mpi::environment.
    [[nodiscard]] static communicator world();
    /// A duplicate of `comm`, which stays the caller's. Ranks: All of it. Errors: usage_error
    /// for MPI_COMM_NULL or an inter-communicator.
    [[nodiscard]] static communicator borrow(MPI_Comm comm);
    /// Takes `comm` over and frees it in the end. Ranks: All of it. Errors: as borrow, and for
    /// MPI_COMM_WORLD and MPI_COMM_SELF, which cannot be freed.
    [[nodiscard]] static communicator adopt(MPI_Comm comm);

    [[nodiscard]] int rank() const noexcept;
    [[nodiscard]] int size() const noexcept;
    [[nodiscard]] bool reaches(memory_space space) const noexcept;
    [[nodiscard]] request start_exchange(std::span<const send_op> sends,
                                         std::span<const recv_op> recvs, stream_ref stream = {});
    [[nodiscard]] std::optional<communicator> split(int color, int key);
    [[nodiscard]] communicator duplicate();
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text);
    void abort(std::string_view reason);

    /// The MPI communicator that carries payload. Messages of others on it break the matching.
    [[nodiscard]] MPI_Comm payload_handle() const noexcept;
    /// The MPI communicator that carries everything else.
    [[nodiscard]] MPI_Comm control_handle() const noexcept;

private:
    explicit communicator(std::shared_ptr<detail::channel> channel) noexcept;

    std::shared_ptr<detail::channel> channel_;
};

static_assert(latpar::communicator<communicator>);

}  // namespace latpar::inline v0::mpi

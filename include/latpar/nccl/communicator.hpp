// SPDX-License-Identifier: Apache-2.0
// Ranks that have a GPU each.
#pragma once

#include <latpar/comm/any_communicator.hpp>

#include <nccl.h>

#include <chrono>
#include <memory>

namespace latpar::inline v0::nccl {

namespace detail {
class channel;
struct flight;
struct insight;
}  // namespace detail

/// What a user may choose of a communicator; the same on every rank.
struct options {
    /// How long the host waits before it aborts: in construction, `synchronize`, and for exchanges
    /// that are waited for without a deadline. Nobody can tell whether a device waits for a peer or
    /// computes: make it longer than all the work that is queued on this rank's device before such a
    /// wait takes, its own computing included, or a slow run is taken for a hang.
    std::chrono::milliseconds timeout = std::chrono::minutes(10);
    /// Lets policies write to the memory of other GPUs of the host, in place of sending messages,
    /// where they know how to and the GPUs reach each other, and copy engines write messages that
    /// have a target. Memory that was shared so is not given back after a failure, since others may
    /// still write to it; its resource must not release it either: a pool that frees what it has at
    /// its end is to leak it then, or to take it from cuda::device_memory. Streams then wait for each
    /// other at words of POSIX shared memory, those of `background()` too.
    bool writes_directly = true;

    friend bool operator==(const options&, const options&) = default;
};

/// An exchange in flight among GPUs.
///
/// - `wait()`: the stream that it was started with waits for it. The host goes on, unless more than
///   16 exchanges of the communicator that were waited for are not done; then it waits for the
///   oldest, which must not need what this rank does later.
/// - `test()`, `wait_until(deadline)`: the host asks the device; for a captured stream as `wait`.
///
/// A wait of the host for the device without a deadline (`deadline::max()`) ends, with an abort,
/// after `options::timeout`.
///
/// What moves in host memory moves over the bootstrap, and blocks the host until it is done.
/// If it is destroyed in flight because an exception passes, the communicator is aborted, so that
/// nothing writes to its buffers any more.
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
    request(std::shared_ptr<detail::channel> channel, detail::flight* flight) noexcept;

    std::shared_ptr<detail::channel> channel_;
    detail::flight* flight_ = nullptr;
    int exceptions_ = 0;
};

/// One rank of a communicator over NCCL: a GPU of its own, in a process or a thread of its own.
///
/// It is made over a communicator of the host, the bootstrap (mpi::communicator, or a
/// thread_team's), which goes on to carry agreement, aborts and messages in host memory. Device
/// memory travels by NCCL, in one group for each exchange, or is written to targets.
///
/// Order: exchanges of one communicator are done on the device in the order in which a rank starts
/// them, each when those before it are done: an exchange must not wait for what a peer sends in
/// one that it started later. Traffic that is to overtake takes a `duplicate()`. A message to the
/// rank itself is received in the exchange that sends it. NCCL does not tell a message of another
/// size than its receiver expects: the device waits, and `synchronize` gives up in time.
/// Buffers: behind `wait()` the device may still be using them. Reuse them in work on the same
/// stream only, and give them back behind `synchronize(stream)` only.
/// Stream: an exchange begins when what was queued on its stream is done, runs beside the stream,
/// on one of the communicator's own with the highest priority, and joins it at the wait; so work
/// that is queued in between runs at the same time. `start_exchange`, `wait` and `meet` can be
/// captured in a CUDA graph where each rank is a process (usage_error elsewhere); such graphs end
/// before the communicator, and their replays are done by then: it cannot tell when they are.
/// Links to all peers are set up by the constructor.
/// Targets: where each rank is a process, copy engines write what has a target, and no
/// multiprocessor takes part: a stream waits for the receiver, writes, and tells it so by words of
/// host memory. Counts are not compared. Such a wait holds one of the device's hardware queues: a
/// program that keeps more streams busy than the 8 that there are sets CUDA_DEVICE_MAX_CONNECTIONS
/// to 32; below 8, among threads, in graphs and where a device cannot wait so, such messages go as
/// all others.
/// Threads: a communicator and all that were made from it serve one thread. A copy is another name
/// of the same; `duplicate` makes one with an order of its own.
/// End: the destructor blocks the host until exchanges under way are done, `options::timeout` at
/// most, and ends NCCL's communicator.
/// Errors: comm_error, at the next call, for what NCCL reports and for an abort by any rank, with
/// the reason.
/// Failure: `abort`, and each call that hears of one, may block the host, 15 s at most, until what
/// was queued has left the device. It also ends those of this rank's communicators of the same
/// origin (what they were made from, splits, duplicates) that are at work. Make a new one with
/// `over`.
/// Waiting: call `synchronize` where you would call cudaStreamSynchronize, which does not return
/// behind a peer that is gone; not while a stream is captured. Who queues more than 60 launches
/// behind an exchange waits for it on the host first (`wait_on_host`), as latpar's policies of steps
/// and loops do: CUDA may else block the host in a launch, where it hears of no failure.
/// Memory: NCCL's own. Where ranks share a process, a split or a duplicate that has gone gives its
/// back when all that were made from one another have.
class communicator {
public:
    /// Ranks: all of `bootstrap`, each with its device current in the calling thread. `bootstrap` is
    /// its own from now on: who goes on to use theirs passes a `duplicate()`.
    /// Errors: usage_error on every rank for ranks that share a device or whose options differ;
    /// comm_error if NCCL cannot be set up on one of them, or not in time.
    [[nodiscard]] static communicator over(any_communicator bootstrap, const options& wanted = {});
    /// The same with an NCCL communicator that exists, of the same ranks in the same order; it is
    /// destroyed in the end. Errors: as `over`, and usage_error if rank, size or device differ from
    /// those of the bootstrap and the current one; usage_error leaves `comm` the caller's.
    [[nodiscard]] static communicator adopt(ncclComm_t comm, any_communicator bootstrap,
                                            const options& wanted = {});

    [[nodiscard]] int rank() const noexcept;
    [[nodiscard]] int size() const noexcept;
    /// All: device memory by NCCL, host memory over the bootstrap.
    [[nodiscard]] bool reaches(memory_space) const noexcept { return true; }
    /// As in `communicator`; messages in device memory are of the device that it belongs to, which is
    /// current. Errors: usage_error, comm_error, device_error if CUDA refuses.
    [[nodiscard]] request start_exchange(std::span<const send_op> sends,
                                         std::span<const recv_op> recvs, stream_ref stream = {});
    /// As in `communicator`. Each makes an NCCL communicator, with links and device memory of its
    /// own. Ranks: all. Blocks the host.
    [[nodiscard]] std::optional<communicator> split(int color, int key);
    [[nodiscard]] communicator duplicate();
    /// See latpar::background. An exchange that only receives, from one peer, waits for it to send
    /// without taking multiprocessors; the message itself takes them, unless it has a target. This
    /// holds where `writes_directly` is true, all ranks are on one host and share its memory, and
    /// CUDA_DEVICE_MAX_CONNECTIONS is not set below 8; elsewhere it is duplicate(), and splits and
    /// duplicates of it are ordinary. What one rank captures in a graph its peers capture too.
    /// Ranks: all. Blocks the host.
    [[nodiscard]] communicator background();
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text);
    void abort(std::string_view reason);

    /// See direct_communicator. GPUs of one host reach each other's memory where the driver lets
    /// them, in one process or several; memory from cudaMalloc, such as cuda::device_memory's. Of
    /// other memory (cudaMallocAsync, mapped by hand) the answer is empty on all ranks, and policies
    /// send messages, 1.3 to 1.6 times as long for Ulysses.
    [[nodiscard]] peer_memory share(std::byte* memory, index_t bytes, memory_space space);
    void meet(stream_ref stream = {});
    void note(std::span<const send_op>, std::span<const recv_op>) noexcept {}

    /// Blocks the host until what was queued on `stream` is done; does not hang behind a peer that
    /// has failed, as cudaStreamSynchronize would.
    ///
    /// Errors: comm_error if the communicator was aborted, or `options::timeout` has passed: it is
    /// then aborted; device_error if the work failed.
    void synchronize(stream_ref stream);

    /// The device that it belongs to.
    [[nodiscard]] int device() const noexcept;
    /// NCCL's own handle, for calls beside latpar's; null where there is but one rank.
    [[nodiscard]] ncclComm_t handle() const noexcept;

private:
    friend struct detail::insight;

    explicit communicator(std::shared_ptr<detail::channel> channel) noexcept;

    std::shared_ptr<detail::channel> channel_;
};

static_assert(direct_communicator<communicator>);

}  // namespace latpar::inline v0::nccl

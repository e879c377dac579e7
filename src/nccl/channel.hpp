// SPDX-License-Identifier: Apache-2.0
// One NCCL communicator as seen by one rank.
#pragma once

#include <latpar/nccl/communicator.hpp>

#include <cuda_runtime_api.h>
#include <nccl/family.hpp>

#include <deque>

namespace latpar::inline v0::nccl::detail {

using namespace latpar::detail;

class channel;

/// What one rank started together; taken from a pool, so that traffic allocates nothing of ours.
struct flight {
    cudaStream_t stream = nullptr;  ///< the user's
    cudaEvent_t ready = nullptr;    ///< what was queued on it before is done
    cudaEvent_t done = nullptr;     ///< the messages have arrived
    bool on_device = false;
    bool is_captured = false;  ///< the user's stream is
    std::vector<send_op> sends, host_sends;
    std::vector<recv_op> recvs, host_recvs;
    std::optional<any_request> host;
};

class channel : public std::enable_shared_from_this<channel> {
public:
    /// Takes `adopted` over unless it is null.
    channel(any_communicator bootstrap, const options& wanted, std::shared_ptr<family> kin,
            ncclComm_t adopted = nullptr);
    channel(const channel&) = delete;
    channel& operator=(const channel&) = delete;
    ~channel();

    [[nodiscard]] int rank() const noexcept { return rank_; }
    [[nodiscard]] int size() const noexcept { return size_; }
    [[nodiscard]] int device() const noexcept { return device_; }
    [[nodiscard]] ncclComm_t handle() const noexcept { return comm_; }

    [[nodiscard]] request start(std::span<const send_op> sends, std::span<const recv_op> recvs,
                                stream_ref stream);
    /// Errors: comm_error, device_error. In any case the flight is the channel's again.
    void wait(flight& f);
    [[nodiscard]] bool wait_until(flight& f, deadline when);
    void drop(flight& f, bool unwinding) noexcept;

    [[nodiscard]] std::vector<std::string> all_gather(std::string_view text);
    [[nodiscard]] std::shared_ptr<channel> split(int color, int key);
    [[nodiscard]] std::shared_ptr<channel> duplicate();
    [[nodiscard]] std::shared_ptr<channel> background();
    void abort(std::string_view reason);
    void synchronize(cudaStream_t stream);
    [[nodiscard]] peer_memory share(std::byte* memory, index_t bytes, memory_space space);
    void meet(stream_ref user);
    /// Waits until what was started is done, and says whether a rank has failed before.
    [[nodiscard]] bool has_failed() noexcept;
    /// Whether this rank knows of a failure; for what may outlive the channel.
    [[nodiscard]] std::shared_ptr<const std::atomic<bool>> failure_flag() const { return flag_; }

    /// Runs one of NCCL's own operations, `call(stream)`, as an exchange that is waited for at once.
    template <class Call>
    void run_collective(const char* name, stream_ref user, Call&& call) {
        throw_if_failed();
        flight& f = take();
        try {
            require_own_device();
            prepare(f, user);
            begin(f);
            is_queueing_ = true;
            settle(call(stream_), name);
            finish(f);
        } catch (...) {
            give_back(f);
            throw;
        }
        wait(f);
    }

private:
    /// How many exchanges the host may be ahead of the device: enough to hide launches, and few
    /// enough that what it queues meanwhile is less than CUDA takes before it blocks (about 1000
    /// launches). A host that is blocked there, behind a peer that has gone, would hear of nothing.
    static constexpr std::size_t lead = 16;

    void create(const std::string& id);
    /// Ranks: all. Where they share a host's memory, they have gates from now on.
    void make_gates();
    /// Sets up the links to all peers, which else the first messages would.
    void warm_up();
    void tear_down() noexcept;
    /// Ends it while it is destroyed, if that is by an exception or takes too long.
    void end_when_due(deadline limit) noexcept;
    /// Waits until the stream waits at no gate, which a failure opens.
    void leave_gates() noexcept;
    /// Lets go of NCCL's communicator, if there is one, whatever it does.
    void let_go() noexcept;

    /// Errors: comm_error if a rank has aborted.
    void hear();
    /// Calls f; if that ends with what the bootstrap has heard of, so does everything else.
    template <class F>
    void listening(F&& f) {
        try {
            f();
        } catch (const comm_error&) {
            throw_if_failed();
            throw;
        }
    }
    void require_own_device() const;
    /// The same, and if NCCL reports an error of its own.
    void throw_if_failed();
    /// Waits until NCCL has taken what it was given. Errors: comm_error; the communicator is then
    /// aborted.
    void settle(ncclResult_t status, const char* doing);
    /// Ends everything of this communicator on the device, and of its kin that are at work.
    void fail(std::string_view reason);
    void end(std::string_view reason) noexcept;
    /// Waits, 5 s at most, until NCCL's own thread has queued on the device what it was given. Who
    /// gives buffers back waits for the device, but not for what comes to it later.
    void await_queueing() noexcept;
    /// Whether the latest exchange that was not captured is still to be done.
    [[nodiscard]] bool is_under_way() const noexcept;
    /// The same, or any was captured, which may be replayed.
    [[nodiscard]] bool is_at_work() const noexcept;
    /// The same, or anything else is on its stream, such as half of an exchange.
    [[nodiscard]] bool is_busy() const noexcept;
    /// The point in time after which a wait that begins now is given up.
    [[nodiscard]] deadline limit() const noexcept;

    [[nodiscard]] flight& take();
    void give_back(flight& f) noexcept;
    /// Errors: usage_error unless each message to this rank itself is received in the same flight.
    void check_own(const flight& f) const;
    /// Remembers what the user's stream has before the flight. Errors: usage_error for a capture
    /// by ranks that share a process.
    void prepare(flight& f, stream_ref user);
    [[nodiscard]] bool is_done(flight& f);
    /// Waits on the host until it is done, or until `when`, and says which. Errors: comm_error, for
    /// one without a deadline after `options::timeout` too.
    [[nodiscard]] bool poll(flight& f, deadline when);
    /// Lets the host go on, but not too far ahead of what is done.
    void follow(flight& f);
    /// Ends everything because what was waited for has not come in time.
    [[noreturn]] void give_up(std::string_view what);
    /// Lets the communicator's stream wait for what the user's had, and says when it is done.
    void begin(flight& f);
    void finish(flight& f);
    /// Queues the messages between the two.
    void launch(flight& f);
    /// Whether a message goes to another rank, or comes from one.
    [[nodiscard]] bool travels(const auto& op) const noexcept {
        return op.peer != rank_ && op.count > 0;
    }
    /// Whether copy engines write the messages to their targets. Not among threads: there CUDA
    /// lets a copy to another device wait, on the host, for who gives memory back, and that waits
    /// for its device, which may wait for the copy.
    [[nodiscard]] bool is_written(const flight& f) const;
    /// Writes each message when its receiver has come, and waits for those that come here.
    void write(const flight& f);
    /// Tells receivers of what NCCL is to send, and waits for a sender where that is all there is.
    void pass_gates(const flight& f);
    void group(const flight& f);
    void copy_own(const flight& f);
    /// A byte to each peer, and one from each.
    void add_greetings(flight& f) const;

    any_communicator bootstrap_;
    options options_;
    std::shared_ptr<family> family_;
    int rank_ = 0;
    int size_ = 0;
    int device_ = 0;
    bool shares_process_ = false;  ///< with another rank
    ncclComm_t comm_ = nullptr;
    cudaStream_t stream_ = nullptr;
    cudaEvent_t last_ = nullptr;  ///< of the latest exchange that was begun and not captured
    bool is_queueing_ = false;    ///< NCCL has been given something that it may not have taken yet
    bool has_graphs_ = false;     ///< something was captured
    bool is_broken_ = false;      ///< failed here, and the peers do not know yet
    std::byte* greetings_ = nullptr;
    std::shared_ptr<gates> gates_;  ///< null where none are used
    bool is_beside_ = false;        ///< exchanges that only receive wait at them
    std::string failure_;
    std::shared_ptr<std::atomic<bool>> flag_ = std::make_shared<std::atomic<bool>>(false);
    std::deque<flight> flights_;
    std::vector<flight*> idle_;
    std::vector<flight*> awaited_;  ///< by streams, and not known to be done; the oldest first
};

}  // namespace latpar::inline v0::nccl::detail

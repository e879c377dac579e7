// SPDX-License-Identifier: Apache-2.0
// Exchanges over NCCL: starting them, waiting for them, ending them early.
#include <latpar/comm/detail/check_operations.hpp>

#include <cuda/detail/check.hpp>
#include <nccl/channel.hpp>
#include <nccl/patience.hpp>

#include <algorithm>
#include <utility>

namespace latpar::inline v0::nccl::detail {
namespace {

using cuda::detail::check;
using cuda::detail::native;

using clock = std::chrono::steady_clock;
using news = gates::news;

/// Lets this thread ask CUDA what would else invalidate a capture that is under way.
class during_captures {
public:
    during_captures() { exchange(); }
    during_captures(const during_captures&) = delete;
    during_captures& operator=(const during_captures&) = delete;
    ~during_captures() { exchange(); }

private:
    void exchange() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }

    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

std::string text_of(const auto& op) {
    return concat(op.count, " elements of ", name_of(op.type));
}

}  // namespace

flight& channel::take() {
    if (idle_.empty()) {
        flight& f = flights_.emplace_back();
        // As many as there are flights, so that none of them is ever refused.
        idle_.reserve(flights_.size());
        check(cudaEventCreateWithFlags(&f.ready, cudaEventDisableTiming), "making an event");
        check(cudaEventCreateWithFlags(&f.done, cudaEventDisableTiming), "making an event");
        return f;
    }
    flight& f = *idle_.back();
    idle_.pop_back();
    return f;
}

void channel::give_back(flight& f) noexcept {
    f.host.reset();
    f.sends.clear();
    f.recvs.clear();
    f.host_sends.clear();
    f.host_recvs.clear();
    f.on_device = false;
    f.is_captured = false;
    idle_.push_back(&f);
}

void channel::require_own_device() const {
    int current = -1;
    check(cudaGetDevice(&current), "asking for the current device");
    require(current == device_, "the communicator belongs to device ", device_,
            ", the current one is ", current, "; make the same current in every call");
}

request channel::start(std::span<const send_op> sends, std::span<const recv_op> recvs,
                       stream_ref stream) {
    throw_if_failed();
    check_operations(size_, sends, recvs, [](memory_space) { return true; });
    require_own_device();
    flight& f = take();
    try {
        for (const send_op& op : sends) {
            (op.space == memory_space::host ? f.host_sends : f.sends).push_back(op);
        }
        for (const recv_op& op : recvs) {
            (op.space == memory_space::host ? f.host_recvs : f.recvs).push_back(op);
        }
        check_own(f);
        // The host's first: what it refuses is not on the device then.
        if (!f.host_sends.empty() || !f.host_recvs.empty()) {
            listening(
                [&] { f.host.emplace(bootstrap_.start_exchange(f.host_sends, f.host_recvs)); });
        }
        f.on_device = !f.sends.empty() || !f.recvs.empty();
        if (f.on_device) {
            prepare(f, stream);
            launch(f);
        }
    } catch (...) {
        give_back(f);
        throw;
    }
    return {shared_from_this(), &f};
}

void channel::prepare(flight& f, stream_ref user) {
    f.on_device = true;
    f.stream = native(user);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(f.stream, &status), "asking whether a stream is captured");
    f.is_captured = status != cudaStreamCaptureStatusNone;
    require(!f.is_captured || !shares_process_, "an exchange of rank ", rank_,
            " was to be captured in a CUDA graph, and other ranks share its process; give each "
            "rank a process of its own");
    check(cudaEventRecord(f.ready, f.stream), "recording an event");
}

void channel::begin(flight& f) {
    check(cudaStreamWaitEvent(stream_, f.ready), "waiting for an event");
}

void channel::finish(flight& f) {
    check(cudaEventRecord(f.done, stream_), "recording an event");
    if (f.is_captured) {
        has_graphs_ = true;
    } else {
        last_ = f.done;
    }
}

void channel::launch(flight& f) {
    try {
        begin(f);
        copy_own(f);
        if (is_written(f)) {
            write(f);
        } else {
            if (is_beside_ && gates_ && !f.is_captured) pass_gates(f);
            group(f);
        }
        finish(f);
    } catch (const device_error& error) {
        // Half of it may be queued, and the peers wait for the rest.
        abort(error.what());
        throw;
    }
}

bool channel::is_written(const flight& f) const {
    const auto has_one = [&](const auto& op) { return travels(op) && has_target(op); };
    return gates_ && !family_->has_threads && !f.is_captured &&
           (std::ranges::any_of(f.sends, has_one) || std::ranges::any_of(f.recvs, has_one));
}

void channel::write(const flight& f) {
    // First what the senders wait for, whatever this rank waits for next.
    for (const recv_op& op : f.recvs) {
        if (travels(op)) gates_->tell(news::receiving, op.peer, 1, stream_);
    }
    for (const send_op& op : f.sends) {
        if (!travels(op)) continue;
        gates_->await(news::receiving, op.peer, stream_);
        gates_->count(news::receiving, op.peer, 1);
        check(cudaMemcpyAsync(op.target, op.data, static_cast<std::size_t>(op.bytes()),
                              cudaMemcpyDeviceToDevice, stream_),
              "writing a message of rank ", rank_, " to rank ", op.peer);
        gates_->tell(news::written, op.peer, 1, stream_);
    }
    for (const recv_op& op : f.recvs) {
        if (!travels(op)) continue;
        gates_->await(news::written, op.peer, stream_);
        gates_->count(news::written, op.peer, 1);
    }
}

void channel::check_own(const flight& f) const {
    const auto is_own = [&](const auto& op) { return op.peer == rank_; };
    const auto sent = std::ranges::count_if(f.sends, is_own);
    const auto received = std::ranges::count_if(f.recvs, is_own);
    require(sent == received, "rank ", rank_, " sends ", sent, " messages to itself and receives ",
            received, " in one exchange; on a GPU both go into the same");
    auto recv = f.recvs.begin();
    for (const send_op& send : f.sends) {
        if (!is_own(send)) continue;
        recv = std::find_if(recv, f.recvs.end(), is_own);
        require<comm_error>(send.count == recv->count && send.type == recv->type, "rank ", rank_,
                            " sent ", text_of(send), " to itself, which expected ", text_of(*recv),
                            "; both sides must name the same count and type");
        ++recv;
    }
}

void channel::copy_own(const flight& f) {
    auto recv = f.recvs.begin();
    for (const send_op& send : f.sends) {
        if (send.peer != rank_) continue;
        recv = std::find_if(recv, f.recvs.end(), [&](const auto& op) { return op.peer == rank_; });
        if (send.count > 0 && send.data != recv->data) {
            check(cudaMemcpyAsync(recv->data, send.data, static_cast<std::size_t>(send.bytes()),
                                  cudaMemcpyDeviceToDevice, stream_),
                  "copying a message of rank ", rank_, " to itself");
        }
        ++recv;
    }
}

void channel::pass_gates(const flight& f) {
    const auto count = [&](const auto& ops, int peer) {
        return static_cast<std::uint32_t>(std::ranges::count_if(
            ops, [&](const auto& op) { return op.peer == peer && op.count > 0; }));
    };
    int receivers = 0;
    int senders = 0;
    int sender = -1;
    for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) continue;
        if (const std::uint32_t going = count(f.sends, peer); going > 0) {
            ++receivers;
            gates_->tell(news::sending, peer, going, stream_);
        }
        if (count(f.recvs, peer) > 0) {
            ++senders;
            sender = peer;
        }
    }
    // Only where NCCL could do nothing else either: what a sender begins may need the rest.
    if (receivers == 0 && senders == 1) gates_->await(news::sending, sender, stream_);
    for (int peer = 0; peer < size_; ++peer) {
        if (peer != rank_) gates_->count(news::sending, peer, count(f.recvs, peer));
    }
}

void channel::group(const flight& f) {
    const auto is_outward = [&](const auto& op) { return travels(op); };
    if (std::ranges::none_of(f.sends, is_outward) && std::ranges::none_of(f.recvs, is_outward)) {
        return;
    }
    is_queueing_ = true;
    ncclResult_t status = ncclGroupStart();
    const auto take = [&](ncclResult_t next) {
        if (status == ncclSuccess || status == ncclInProgress) status = next;
    };
    for (const send_op& op : f.sends) {
        if (!travels(op)) continue;
        take(ncclSend(op.data, static_cast<std::size_t>(op.bytes()), ncclUint8, op.peer, comm_,
                      stream_));
    }
    for (const recv_op& op : f.recvs) {
        if (!travels(op)) continue;
        take(ncclRecv(op.data, static_cast<std::size_t>(op.bytes()), ncclUint8, op.peer, comm_,
                      stream_));
    }
    take(ncclGroupEnd());
    settle(status, "an exchange over NCCL");
}

bool channel::is_done(flight& f) {
    bool has_arrived = true;
    if (f.host) listening([&] { has_arrived = f.host->test(); });
    if (!has_arrived) return false;
    if (!f.on_device) return true;
    // Asking would invalidate a capture of any other stream.
    const during_captures relaxed;
    const cudaError_t status = cudaEventQuery(f.done);
    if (status == cudaErrorNotReady) return false;
    check(status, "an exchange over NCCL");
    return true;
}

bool channel::poll(flight& f, deadline when) {
    const bool is_limited = when == deadline::max();
    if (is_limited) when = limit();
    patience waiting;
    for (;;) {
        throw_if_failed();
        if (is_done(f)) return true;
        if (clock::now() >= when) {
            if (is_limited) give_up("an exchange");
            return false;
        }
        waiting.wait();
    }
}

void channel::follow(flight& f) {
    f.host.reset();
    awaited_.push_back(&f);
    if (awaited_.size() <= lead) return;
    static_cast<void>(poll(*awaited_.front(), deadline::max()));
    give_back(*awaited_.front());
    awaited_.erase(awaited_.begin());
}

void channel::wait(flight& f) {
    try {
        throw_if_failed();
        if (f.on_device) check(cudaStreamWaitEvent(f.stream, f.done), "waiting for an exchange");
        if (f.host) listening([&] { f.host->wait(); });
    } catch (...) {
        give_back(f);
        throw;
    }
    if (f.on_device && !f.is_captured) {
        follow(f);
    } else {
        give_back(f);
    }
}

bool channel::wait_until(flight& f, deadline when) {
    if (f.is_captured) {
        wait(f);
        return true;
    }
    try {
        if (!poll(f, when)) return false;
        // What is queued from now on comes behind it, whoever set the event.
        if (f.on_device) check(cudaStreamWaitEvent(f.stream, f.done), "waiting for an exchange");
    } catch (...) {
        give_back(f);
        throw;
    }
    give_back(f);
    return true;
}

void channel::drop(flight& f, bool unwinding) noexcept {
    try {
        if (unwinding) {
            if (failure_.empty()) is_broken_ = true;
            fail("an exchange was left unfinished when an exception passed it");
            give_back(f);
        } else {
            wait(f);
        }
    } catch (...) {
        // wait() has given it back; whoever uses the communicator next hears of the failure.
    }
}

}  // namespace latpar::inline v0::nccl::detail

// SPDX-License-Identifier: Apache-2.0
// A communicator that shows what a policy waits for.
#pragma once

#include <latpar/nccl/communicator.hpp>

#include <gpu_benchmark.hpp>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gpu_benchmark {

/// How long streams stood still, by pairs of events around the places where they may.
class stopwatch {
public:
    void start(latpar::stream_ref stream) {
        if (used_ == laps_.size()) laps_.push_back(std::make_unique<lap>());
        laps_[used_]->begin.record(stream);
    }
    void stop(latpar::stream_ref stream) { laps_[used_++]->end.record(stream); }
    /// Milliseconds since this was asked before; blocks the host.
    [[nodiscard]] double take() {
        double out = 0;
        for (std::size_t i = 0; i < used_; ++i) {
            out += laps_[i]->end.milliseconds_since(laps_[i]->begin);
        }
        used_ = 0;
        return out;
    }

private:
    struct lap {
        event begin, end;
    };
    std::vector<std::unique_ptr<lap>> laps_;
    std::size_t used_ = 0;
};

/// A communicator that measures how long streams wait for its messages, and shortens those of
/// device memory once it is told: to nothing, so that what is left of a policy is its computing, or
/// to one element, so that it waits for other ranks too. Whole messages before that fill what is
/// computed with.
class observed {
    struct state {
        latpar::index_t most = std::numeric_limits<latpar::index_t>::max();
        stopwatch stalls;
    };

public:
    class request {
    public:
        request(latpar::nccl::request inner, std::shared_ptr<state> of, latpar::stream_ref stream)
            : inner_(std::move(inner)), state_(std::move(of)), stream_(stream) {}
        [[nodiscard]] bool test() { return inner_.test(); }
        void wait() {
            state_->stalls.start(stream_);
            inner_.wait();
            state_->stalls.stop(stream_);
        }
        [[nodiscard]] bool wait_until(latpar::deadline when) {
            state_->stalls.start(stream_);
            const bool is_done = inner_.wait_until(when);
            state_->stalls.stop(stream_);
            return is_done;
        }

    private:
        latpar::nccl::request inner_;
        std::shared_ptr<state> state_;
        latpar::stream_ref stream_;
    };

    explicit observed(latpar::nccl::communicator inner)
        : observed(std::move(inner), std::make_shared<state>()) {}
    /// To at most so many elements, from now on, of all that was made from this one too.
    void shorten(latpar::index_t most) { state_->most = most; }
    /// Milliseconds that this rank's streams waited, since this was asked before.
    [[nodiscard]] double take_stalled() { return state_->stalls.take(); }

    [[nodiscard]] int rank() const { return inner_.rank(); }
    [[nodiscard]] int size() const { return inner_.size(); }
    [[nodiscard]] bool reaches(latpar::memory_space space) const { return inner_.reaches(space); }
    [[nodiscard]] request start_exchange(std::span<const latpar::send_op> sends,
                                         std::span<const latpar::recv_op> recvs,
                                         latpar::stream_ref stream = {}) {
        const auto shorten = [&](const auto& ops, auto& out) {
            out.assign(ops.begin(), ops.end());
            for (auto& op : out) {
                if (op.space == latpar::memory_space::cuda)
                    op.count = std::min(op.count, state_->most);
            }
        };
        shorten(sends, sends_);
        shorten(recvs, recvs_);
        return {inner_.start_exchange(sends_, recvs_, stream), state_, stream};
    }
    [[nodiscard]] std::optional<observed> split(int color, int key) {
        auto part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return observed(std::move(*part), state_);
    }
    [[nodiscard]] observed duplicate() { return observed(inner_.duplicate(), state_); }
    [[nodiscard]] observed background() { return observed(inner_.background(), state_); }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }
    [[nodiscard]] latpar::peer_memory share(std::byte* memory, latpar::index_t bytes,
                                            latpar::memory_space space) {
        return inner_.share(memory, bytes, space);
    }
    void meet(latpar::stream_ref stream = {}) { inner_.meet(stream); }
    void note(std::span<const latpar::send_op> sends, std::span<const latpar::recv_op> recvs) {
        inner_.note(sends, recvs);
    }

private:
    observed(latpar::nccl::communicator inner, std::shared_ptr<state> shared)
        : inner_(std::move(inner)), state_(std::move(shared)) {}

    latpar::nccl::communicator inner_;
    std::shared_ptr<state> state_;  ///< of all that were made from one another
    std::vector<latpar::send_op> sends_;
    std::vector<latpar::recv_op> recvs_;
};

}  // namespace gpu_benchmark

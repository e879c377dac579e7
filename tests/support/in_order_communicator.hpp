// SPDX-License-Identifier: Apache-2.0
// A communicator that does its exchanges one after the other, as NCCL's does.
#pragma once

#include <latpar/comm/communicator.hpp>

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

/// Begins an exchange when those that were started before it, on this communicator, are done.
/// Each call and each wait of a rank moves on all communicators that it made from one another.
template <latpar::communicator C>
class in_order_communicator {
    struct flight {
        std::vector<latpar::send_op> sends;
        std::vector<latpar::recv_op> recvs;
        latpar::stream_ref stream;
        bool is_done = false;
    };
    struct channel {
        explicit channel(C comm) : inner(std::move(comm)) {}

        C inner;
        std::deque<std::shared_ptr<flight>> waiting;  ///< of which the first has begun
        std::optional<decltype(std::declval<C&>().start_exchange({}, {}, {}))> begun;

        void advance() {
            while (!waiting.empty()) {
                flight& first = *waiting.front();
                if (!begun) {
                    begun.emplace(inner.start_exchange(first.sends, first.recvs, first.stream));
                }
                if (!begun->test()) return;
                begun.reset();
                first.is_done = true;
                waiting.pop_front();
            }
        }
    };
    using channels = std::vector<std::weak_ptr<channel>>;

    static void advance(const channels& all) {
        for (const std::weak_ptr<channel>& one : all) {
            if (const auto here = one.lock()) here->advance();
        }
    }

public:
    class request {
    public:
        request(std::shared_ptr<flight> of, std::shared_ptr<const channels> all)
            : flight_(std::move(of)), all_(std::move(all)) {}
        [[nodiscard]] bool test() {
            advance(*all_);
            return flight_->is_done;
        }
        void wait() { static_cast<void>(wait_until(latpar::deadline::max())); }
        [[nodiscard]] bool wait_until(latpar::deadline when) {
            while (!test()) {
                if (latpar::deadline::clock::now() >= when) return false;
                std::this_thread::yield();
            }
            return true;
        }

    private:
        std::shared_ptr<flight> flight_;
        std::shared_ptr<const channels> all_;
    };

    explicit in_order_communicator(C inner,
                                   std::shared_ptr<channels> all = std::make_shared<channels>())
        : channel_(std::make_shared<channel>(std::move(inner))), all_(std::move(all)) {
        all_->push_back(channel_);
    }

    [[nodiscard]] int rank() const noexcept { return channel_->inner.rank(); }
    [[nodiscard]] int size() const noexcept { return channel_->inner.size(); }
    [[nodiscard]] bool reaches(latpar::memory_space space) const noexcept {
        return channel_->inner.reaches(space);
    }
    [[nodiscard]] request start_exchange(std::span<const latpar::send_op> sends,
                                         std::span<const latpar::recv_op> recvs,
                                         latpar::stream_ref stream = {}) {
        auto made = std::make_shared<flight>(
            flight{{sends.begin(), sends.end()}, {recvs.begin(), recvs.end()}, stream});
        channel_->waiting.push_back(made);
        advance(*all_);
        return {std::move(made), all_};
    }
    [[nodiscard]] std::optional<in_order_communicator> split(int color, int key) {
        std::optional<C> part = channel_->inner.split(color, key);
        if (!part) return std::nullopt;
        return in_order_communicator(std::move(*part), all_);
    }
    [[nodiscard]] in_order_communicator duplicate() {
        return in_order_communicator(channel_->inner.duplicate(), all_);
    }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return channel_->inner.control_all_gather(text);
    }
    void abort(std::string_view reason) { channel_->inner.abort(reason); }

private:
    std::shared_ptr<channel> channel_;
    std::shared_ptr<channels> all_;
};

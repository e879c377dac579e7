// SPDX-License-Identifier: Apache-2.0
// A communicator that does its exchanges one after the other, as NCCL's does.
#pragma once

#include <latpar/comm/communicator.hpp>
#include <latpar/comm/thread_team.hpp>

#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

/// Begins an exchange when those that were started before it, on this communicator, are done.
/// Each call of a rank and each of its waits moves on all communicators that it made from one
/// another; nothing moves while it is in a gather.
template <latpar::communicator C>
class in_order_communicator {
    struct flight {
        std::vector<latpar::send_op> sends;
        std::vector<latpar::recv_op> recvs;
        latpar::stream_ref stream;
        bool is_done = false;
        std::exception_ptr error = nullptr;
    };
    struct channel {
        explicit channel(C comm) : inner(std::move(comm)) {}

        C inner;
        std::deque<std::shared_ptr<flight>> waiting;  ///< of which the first has begun
        std::optional<decltype(std::declval<C&>().start_exchange({}, {}, {}))> begun;

        void advance() {
            while (!waiting.empty()) {
                flight& first = *waiting.front();
                try {
                    if (!begun) {
                        begun.emplace(inner.start_exchange(first.sends, first.recvs, first.stream));
                    }
                    if (!begun->test()) return;
                } catch (...) {
                    first.error = std::current_exception();
                }
                begun.reset();
                first.is_done = true;
                waiting.pop_front();
            }
        }
        void give_up() {
            for (const std::shared_ptr<flight>& one : waiting) {
                one->error =
                    std::make_exception_ptr(latpar::comm_error("an exchange was left unfinished"));
                one->is_done = true;
            }
            waiting.clear();
            begun.reset();
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
        request(std::shared_ptr<flight> of, std::shared_ptr<channel> on,
                std::shared_ptr<const channels> all)
            : flight_(std::move(of)),
              channel_(std::move(on)),
              all_(std::move(all)),
              exceptions_(std::uncaught_exceptions()) {}
        request(request&&) noexcept = default;
        request& operator=(request&& other) noexcept {
            std::swap(flight_, other.flight_);
            std::swap(channel_, other.channel_);
            std::swap(all_, other.all_);
            return *this;
        }
        ~request() {
            if (!flight_ || flight_->is_done) return;
            // Who leaves with an exception leaves everything that was started.
            if (std::uncaught_exceptions() > exceptions_) {
                channel_->give_up();
                return;
            }
            try {
                wait();
            } catch (const std::exception&) {
                // The next call says it.
            }
        }

        [[nodiscard]] bool test() {
            advance(*all_);
            if (flight_->error) std::rethrow_exception(flight_->error);
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
        std::shared_ptr<channel> channel_;
        std::shared_ptr<const channels> all_;
        int exceptions_;
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
        return {std::move(made), channel_, all_};
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
        advance(*all_);
        return channel_->inner.control_all_gather(text);
    }
    void abort(std::string_view reason) { channel_->inner.abort(reason); }

private:
    std::shared_ptr<channel> channel_;
    std::shared_ptr<channels> all_;
};
static_assert(latpar::communicator<in_order_communicator<latpar::thread_communicator>>);

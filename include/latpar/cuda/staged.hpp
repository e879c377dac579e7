// SPDX-License-Identifier: Apache-2.0
// A communicator of host memory that reaches device memory too.
#pragma once

#include <latpar/comm/detail/check_operations.hpp>
#include <latpar/core/memory.hpp>
#include <latpar/cuda/stream.hpp>

#include <algorithm>
#include <exception>
#include <memory>
#include <utility>

namespace latpar::inline v0::cuda {

namespace detail {

struct staging_area;
struct staged_messages;

/// The page-locked memory of one communicator; null for that of cuda::pinned_memory.
[[nodiscard]] std::shared_ptr<staging_area> make_staging_area(std::pmr::memory_resource* pinned);

/// The messages of one exchange in page-locked memory, which goes back to its area in the end.
class staging {
public:
    staging() = default;
    staging(staging&& other) noexcept
        : area_(std::move(other.area_)), messages_(std::exchange(other.messages_, nullptr)) {}
    staging& operator=(staging&& other) noexcept {
        std::swap(area_, other.area_);
        std::swap(messages_, other.messages_);
        return *this;
    }
    ~staging();

    /// What device memory sends is in host memory on return, what it receives has its place there.
    [[nodiscard]] static staging of(std::shared_ptr<staging_area> area,
                                    std::span<const send_op> sends, std::span<const recv_op> recvs,
                                    stream_ref stream);

    /// The operations, all of them on host memory.
    [[nodiscard]] std::span<const send_op> sends() const noexcept;
    [[nodiscard]] std::span<const recv_op> recvs() const noexcept;

    [[nodiscard]] bool pending() const noexcept { return messages_ != nullptr; }
    /// Once all has arrived: queues the copies to the device, and is empty then.
    void deliver();

private:
    staging(std::shared_ptr<staging_area> area, staged_messages& messages) noexcept
        : area_(std::move(area)), messages_(&messages) {}

    std::shared_ptr<staging_area> area_;
    staged_messages* messages_ = nullptr;
};

}  // namespace detail

/// An exchange in flight of a `staged` communicator.
template <exchange_request Inner>
class staged_request {
public:
    staged_request(Inner inner, detail::staging messages)
        : messages_(std::move(messages)),
          inner_(std::move(inner)),
          exceptions_(std::uncaught_exceptions()) {}
    staged_request(staged_request&&) noexcept = default;
    staged_request& operator=(staged_request&& other) noexcept {
        if (this == &other) return *this;
        const staged_request old(std::move(*this));
        messages_ = std::move(other.messages_);
        inner_ = std::move(other.inner_);
        exceptions_ = other.exceptions_;
        return *this;
    }
    ~staged_request() {
        // While an exception passes, the inner request ends as it does on its own.
        if (!messages_.pending() || std::uncaught_exceptions() > exceptions_) return;
        try {
            wait();
        } catch (const error&) {
            // Whoever needs to know hears of it from the next operation.
        }
    }

    [[nodiscard]] bool test() {
        return end([&] { return inner_.test(); });
    }
    void wait() {
        static_cast<void>(end([&] {
            inner_.wait();
            return true;
        }));
    }
    [[nodiscard]] bool wait_until(deadline when) {
        return end([&] { return inner_.wait_until(when); });
    }

private:
    template <class Done>
    bool end(Done&& done) {
        // If this throws, nothing has arrived, now or later.
        detail::staging messages = std::move(messages_);
        if (!done()) {
            messages_ = std::move(messages);
            return false;
        }
        messages.deliver();
        return true;
    }

    // Its memory is in use for as long as the inner request lives.
    detail::staging messages_;
    Inner inner_;
    int exceptions_;
};

/// Any communicator of host memory, for messages in CUDA memory too.
///
/// For ranks that are threads on one device or on several, and for processes without NCCL. What a
/// device sends is copied to page-locked memory, travels in the inner communicator as the same
/// messages in the same order, and is copied to the receiving device. Messages in host memory are
/// passed on as they are, and so is everything where the inner communicator itself reaches CUDA
/// memory, as an MPI may that was built for it: then the stream is waited for instead.
///
/// Stream: start_exchange blocks the host until what the device sends has left it, thus until all
/// that was queued on `stream` before is done. A wait ends when all has arrived in host memory; the
/// copies to the device are queued on the stream that start_exchange was given. Cannot be captured
/// in a graph. The device of the stream is current in the calling thread, and the same in all
/// calls; the stream outlives the exchange.
/// Memory: one page-locked buffer for each exchange in flight at a time, as large as its messages
/// in CUDA memory. It is kept, and taken anew only for an exchange that is larger than those
/// before; communicators split or duplicated from this one have their own.
/// Errors: those of the inner communicator, and device_error.
/// Example: `cuda::staged comm(mpi::communicator::world());`
template <communicator Comm>
class staged {
public:
    /// `pinned` gives host memory that the device reaches and outlives the communicator; null for
    /// cuda::pinned_memory.
    // A template, so that a Comm which can hold any communicator is not tried on this one.
    template <std::same_as<Comm> Inner>
    explicit staged(Inner inner, std::pmr::memory_resource* pinned = nullptr)
        : inner_(std::move(inner)), pinned_(pinned), area_(detail::make_staging_area(pinned)) {}

    [[nodiscard]] int rank() const noexcept { return inner_.rank(); }
    [[nodiscard]] int size() const noexcept { return inner_.size(); }
    [[nodiscard]] bool reaches(memory_space space) const noexcept {
        return space == memory_space::cuda || inner_.reaches(space);
    }

    [[nodiscard]] auto start_exchange(std::span<const send_op> sends,
                                      std::span<const recv_op> recvs, stream_ref stream = {}) {
        using request = staged_request<decltype(inner_.start_exchange(sends, recvs, stream))>;
        latpar::detail::check_operations(size(), sends, recvs,
                                         [&](memory_space space) { return reaches(space); });
        const auto on_device = [](const auto& op) {
            return op.space == memory_space::cuda && op.count > 0;
        };
        const bool stages = std::any_of(sends.begin(), sends.end(), on_device) ||
                            std::any_of(recvs.begin(), recvs.end(), on_device);
        if (!stages || inner_.reaches(memory_space::cuda)) {
            if (stages) synchronize(stream);
            return request(inner_.start_exchange(sends, recvs, stream), {});
        }
        detail::staging messages = detail::staging::of(area_, sends, recvs, stream);
        auto inner = inner_.start_exchange(messages.sends(), messages.recvs(), {});
        return request(std::move(inner), std::move(messages));
    }

    [[nodiscard]] std::optional<staged> split(int color, int key) {
        std::optional<Comm> part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return staged(std::move(*part), pinned_);
    }
    [[nodiscard]] staged duplicate() { return staged(inner_.duplicate(), pinned_); }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

    [[nodiscard]] Comm& inner() noexcept { return inner_; }

private:
    Comm inner_;
    std::pmr::memory_resource* pinned_;
    std::shared_ptr<detail::staging_area> area_;
};

template <class Comm>
staged(Comm) -> staged<Comm>;
template <class Comm>
staged(Comm, std::pmr::memory_resource*) -> staged<Comm>;

}  // namespace latpar::inline v0::cuda

// SPDX-License-Identifier: Apache-2.0
// Messages of host memory that pass through device memory, so that the suites of host memory test
// communicators of device memory.
#pragma once

#include <latpar/comm/detail/check_operations.hpp>
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>

#include <deque>
#include <exception>
#include <memory>
#include <utility>

/// The device memory of one communicator's exchanges.
class device_mailbox {
public:
    /// What one exchange uses; idle ones are used again.
    struct parcel {
        latpar::cuda::stream stream;
        latpar::buffer own;
        std::byte* memory = nullptr;
        latpar::index_t bytes = 0;
        /// What the communicator of device memory is given.
        std::vector<latpar::send_op> sends{};
        std::vector<latpar::recv_op> recvs{};
        /// Where what arrives is wanted.
        std::vector<void*> wanted{};
    };

    /// The operations of host memory on device memory; what is sent lies there on return.
    [[nodiscard]] parcel& pack(std::span<const latpar::send_op> sends,
                               std::span<const latpar::recv_op> recvs) {
        latpar::index_t bytes = 0;
        for (const auto& op : sends) bytes += latpar::detail::aligned(op.bytes());
        for (const auto& op : recvs) bytes += latpar::detail::aligned(op.bytes());
        parcel& out = take(bytes);
        out.sends.assign(sends.begin(), sends.end());
        out.recvs.assign(recvs.begin(), recvs.end());
        out.wanted.clear();
        std::byte* next = out.memory;
        const auto place = [&](auto& op) {
            op.space = latpar::memory_space::cuda;
            op.data = op.count == 0 ? nullptr : next;
            next += latpar::detail::aligned(op.bytes());
        };
        for (latpar::send_op& op : out.sends) {
            const void* from = op.data;
            place(op);
            latpar::cuda::copy_bytes(const_cast<void*>(op.data), from, op.bytes(), out.stream);
        }
        for (latpar::recv_op& op : out.recvs) {
            out.wanted.push_back(op.data);
            place(op);
        }
        return out;
    }
    /// Brings what arrived to host memory.
    void unpack(const parcel& p) {
        for (std::size_t i = 0; i < p.recvs.size(); ++i) {
            latpar::cuda::copy_bytes(p.wanted[i], p.recvs[i].data, p.recvs[i].bytes(), p.stream);
        }
    }
    void give_back(parcel& p) noexcept { idle_.push_back(&p); }

private:
    static constexpr latpar::index_t shared_bytes = latpar::index_t{32} << 20;

    [[nodiscard]] parcel& take(latpar::index_t bytes) {
        auto best = idle_.end();
        for (auto at = idle_.begin(); at != idle_.end(); ++at) {
            if ((*at)->bytes < bytes) continue;
            if (best == idle_.end() || (*at)->bytes < (*best)->bytes) best = at;
        }
        if (best != idle_.end()) {
            parcel& out = **best;
            idle_.erase(best);
            return out;
        }
        // Taking memory may wait for the device, whose exchanges may wait for this rank: small
        // messages share what is taken at the start.
        parcel& out = parcels_.emplace_back();
        idle_.reserve(parcels_.size());
        out.bytes = bytes;
        if (used_ + bytes <= shared_bytes) {
            out.memory = shared_.data() + used_;
            used_ += bytes;
        } else {
            out.own = latpar::buffer(bytes, memory_.source());
            out.memory = out.own.data();
        }
        return out;
    }

    latpar::cuda::device_memory memory_;
    latpar::buffer shared_{shared_bytes, memory_.source()};
    latpar::index_t used_ = 0;
    std::deque<parcel> parcels_;
    std::vector<parcel*> idle_;
};

/// An exchange of device memory in flight, and what brings its messages home.
template <latpar::exchange_request Inner>
class through_device_request {
public:
    through_device_request(std::shared_ptr<device_mailbox> box, device_mailbox::parcel& p,
                           Inner inner)
        : held_(std::move(box), &p),
          inner_(std::move(inner)),
          exceptions_(std::uncaught_exceptions()) {}
    through_device_request(through_device_request&&) noexcept = default;
    through_device_request& operator=(through_device_request&& other) noexcept {
        if (this == &other) return *this;
        const through_device_request old(std::move(*this));
        held_ = std::move(other.held_);
        inner_ = std::move(other.inner_);
        exceptions_ = other.exceptions_;
        return *this;
    }
    ~through_device_request() {
        if (!held_.parcel || std::uncaught_exceptions() > exceptions_) return;
        try {
            wait();
        } catch (const latpar::error&) {
            // Whoever needs to know hears of it from the next operation.
        }
    }

    [[nodiscard]] bool test() {
        return !held_.parcel || end([&] { return inner_.test(); });
    }
    void wait() {
        if (!held_.parcel) return;
        // By asking: a wait that only orders streams would let the host wait for the device below,
        // where no abort reaches it.
        static_cast<void>(end([&] { return inner_.wait_until(latpar::deadline::max()); }));
    }
    [[nodiscard]] bool wait_until(latpar::deadline when) {
        return !held_.parcel || end([&] { return inner_.wait_until(when); });
    }

private:
    /// Goes back to its box, after the inner request, which is declared behind it.
    struct holding {
        std::shared_ptr<device_mailbox> box;
        device_mailbox::parcel* parcel;

        holding(std::shared_ptr<device_mailbox> b, device_mailbox::parcel* p) noexcept
            : box(std::move(b)), parcel(p) {}
        holding(holding&& other) noexcept
            : box(std::move(other.box)), parcel(std::exchange(other.parcel, nullptr)) {}
        holding& operator=(holding&& other) noexcept {
            std::swap(box, other.box);
            std::swap(parcel, other.parcel);
            return *this;
        }
        ~holding() {
            if (parcel) box->give_back(*parcel);
        }
    };

    template <class Done>
    bool end(Done&& done) {
        // Either done or failed for good, unless it says that it is not done yet.
        holding now = std::move(held_);
        if (!done()) {
            held_ = std::move(now);
            return false;
        }
        now.box->unpack(*now.parcel);
        return true;
    }

    holding held_;
    Inner inner_;
    int exceptions_;
};

/// A communicator of host memory over one that reaches CUDA memory.
///
/// Each message goes to device memory, is exchanged there on a stream of its exchange's own, and
/// what arrives is brought back when the exchange is waited for or found done. So a suite of host
/// memory, as tests/comm/conformance.hpp, tests what `C` does with device memory:
/// `conformance::every_pair(through_device(cuda::staged(std::move(comm))))`. Make it where the
/// device of the rank is current.
template <latpar::communicator C>
class through_device {
public:
    template <std::same_as<C> Inner>
    explicit through_device(Inner inner)
        : inner_(std::move(inner)), box_(std::make_shared<device_mailbox>()) {
        latpar::detail::require(inner_.reaches(latpar::memory_space::cuda),
                                "there is no device memory to go through");
    }

    [[nodiscard]] int rank() const noexcept { return inner_.rank(); }
    [[nodiscard]] int size() const noexcept { return inner_.size(); }
    [[nodiscard]] bool reaches(latpar::memory_space space) const noexcept {
        return space == latpar::memory_space::host;
    }
    [[nodiscard]] auto start_exchange(std::span<const latpar::send_op> sends,
                                      std::span<const latpar::recv_op> recvs,
                                      latpar::stream_ref = {}) {
        latpar::detail::check_operations(
            size(), sends, recvs, [&](latpar::memory_space space) { return reaches(space); });
        device_mailbox::parcel& p = box_->pack(sends, recvs);
        using request = through_device_request<decltype(inner_.start_exchange({}, {}, {}))>;
        try {
            return request(box_, p, inner_.start_exchange(p.sends, p.recvs, p.stream));
        } catch (...) {
            box_->give_back(p);
            throw;
        }
    }
    [[nodiscard]] std::optional<through_device> split(int color, int key) {
        std::optional<C> part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return through_device(std::move(*part));
    }
    [[nodiscard]] through_device duplicate() { return through_device(inner_.duplicate()); }
    [[nodiscard]] through_device background() { return through_device(latpar::background(inner_)); }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

    [[nodiscard]] C& inner() noexcept { return inner_; }

private:
    C inner_;
    std::shared_ptr<device_mailbox> box_;
};

template <class C>
through_device(C) -> through_device<C>;

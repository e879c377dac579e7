// SPDX-License-Identifier: Apache-2.0
// Runs a transfer phase: packs boxes, exchanges them, shows what arrived.
#pragma once

#include <latpar/comm/communicator.hpp>
#include <latpar/comm/transfer_plan.hpp>
#include <latpar/core/memory.hpp>
#include <latpar/kernel/kernel_set.hpp>

#include <optional>
#include <utility>
#include <vector>

namespace latpar::inline v0 {

/// The message buffers of one rank, and the one phase that is in flight in them.
///
/// Ranks: all ranks of the communicator start the same phases in the same order.
/// Memory: the buffers are taken once; a phase that needs more makes them grow.
template <communicator C, kernel_set K>
class box_exchange {
public:
    /// A box that arrived: its transfer, and its elements, dense, as they travelled.
    struct arrival {
        transfer from;
        const_latent_view data;
    };

    box_exchange(C& comm, K kernels, index_t buffer_bytes, memory_source source)
        : comm_(&comm),
          kernels_(std::move(kernels)),
          source_(source),
          arena_(buffer_bytes, source) {}

    /// Packs this rank's boxes of `source`, which begins at `origin`, and starts the exchange.
    ///
    /// `source` holds every box that this rank sends; it may be reused once this returns (on a
    /// device: in stream order).
    void start(const transfer_phase& phase, const_latent_view source, const extents3& origin,
               stream_ref stream) {
        static_cast<void>(wait());  // the buffers of a phase before are still its own
        if (phase.buffer_bytes(comm_->rank()) > arena_.bytes()) {
            arena_ = buffer(phase.buffer_bytes(comm_->rank()), source_);
        }
        std::byte* next = arena_.data();
        const auto take = [&](const transfer& t) {
            latent_view out{next,
                            {source.extents[0], phase.channels / source.extents[0],
                             t.region.extent[0], t.region.extent[1], t.region.extent[2]},
                            {},
                            phase.wire,
                            source_.space};
            out.strides = dense_strides(out.extents);
            next += detail::aligned(out.bytes());
            return out;
        };
        sends_.clear();
        recvs_.clear();
        arrivals_.clear();
        const box* packed = nullptr;
        latent_view message;
        for (const transfer& t : phase.transfers) {
            if (t.from == comm_->rank()) {
                // The same box for several ranks is packed once.
                if (!packed || *packed != t.region) {
                    message = take(t);
                    kernels_.copy(subview(source, relative_to(t.region, origin)), message, stream);
                    packed = &t.region;
                }
                sends_.push_back(
                    {message.data, message.elements(), phase.wire, t.to, source_.space});
            }
            if (t.to == comm_->rank()) {
                const latent_view out = take(t);
                recvs_.push_back({out.data, out.elements(), phase.wire, t.from, source_.space});
                arrivals_.push_back({t, out});
            }
        }
        if (!sends_.empty() || !recvs_.empty()) {
            request_.emplace(comm_->start_exchange(sends_, recvs_, stream));
        }
    }

    /// Waits until the phase is done; what arrived stays valid until the next start.
    std::span<const arrival> wait() {
        if (request_) {
            wait_on_host(*request_);
            request_.reset();
        }
        return arrivals_;
    }

    /// Waits, and writes what arrived to `target`, which begins at `origin`.
    void wait_into(latent_view target, const extents3& origin, stream_ref stream) {
        for (const arrival& a : wait()) {
            kernels_.copy(a.data, subview(target, relative_to(a.from.region, origin)), stream);
        }
    }

private:
    using request = decltype(std::declval<C&>().start_exchange({}, {}, stream_ref{}));

    C* comm_;
    K kernels_;
    memory_source source_;
    buffer arena_;
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
    std::vector<arrival> arrivals_;
    std::optional<request> request_;
};

}  // namespace latpar::inline v0

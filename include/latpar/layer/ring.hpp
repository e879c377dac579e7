// SPDX-License-Identifier: Apache-2.0
// Ring attention inside a model.
#pragma once

#include <latpar/kernel/host.hpp>
#include <latpar/layer/detail/ring_passing.hpp>

#include <string_view>
#include <utility>

namespace latpar::inline v0::layer {

/// An attention over tokens that lie on several ranks: keys and values travel round a ring, and
/// each rank merges what its own queries find in them.
///
/// The next block is on its way while `attend` works on the present one. Any number of ranks goes
/// with any number of heads. `attend` must write its lse. Equal to attention on one rank to
/// rounding.
///
/// Ranks: all ranks of the communicator construct it and make every call.
/// Stream: ordered on it; the host waits for messages.
/// Memory: `plan.workspace_bytes(rank, ...)` from `source`, taken by the constructor, or by the
/// first call if keys do not lie as they travel (dense, all key heads of a token together).
/// Errors: usage_error on every rank if the plans differ; what `attend` throws, and views that do
/// not fit the plan, abort the communicator with their message.
/// Source: Ring Attention (arXiv 2310.01889).
template <attention Attend, communicator Comm, kernel_set Kernels = kernel::host>
class ring {
public:
    ring(Attend attend, Comm& comm, ring_plan plan, Kernels kernels = {}, memory_source source = {})
        : passing_(std::move(attend), comm, std::move(kernels), source) {
        use(std::move(plan));
    }

    [[nodiscard]] const ring_plan& plan() const noexcept { return passing_.plan(); }
    [[nodiscard]] Attend& attend() noexcept { return passing_.inner(); }

    /// Goes on with another plan, for other tokens; memory grows if it must. All ranks call it.
    void use(ring_plan plan) {
        Comm& comm = passing_.comm();
        guarded(comm, [&] {
            agree_on(comm, "the ring plan", plan.fingerprint());
            latpar::detail::require(plan.ranks == comm.size(), "a ring was planned for ",
                                    plan.ranks, " ranks, the communicator has ", comm.size(),
                                    "; plan for its size");
            passing_.use(std::move(plan));
        });
    }

    /// `lse` must be null.
    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse = {}, stream_ref stream = {}) {
        guarded(passing_.comm(), [&] {
            latpar::detail::require(lse.data == nullptr, "ring does not return an lse; pass {}");
            passing_(q, k, v, out, {}, stream);
        });
    }

    void abort(std::string_view reason) { passing_.comm().abort(reason); }

private:
    detail::ring_passing<Attend, Comm, Kernels> passing_;
};

}  // namespace latpar::inline v0::layer

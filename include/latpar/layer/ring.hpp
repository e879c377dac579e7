// SPDX-License-Identifier: Apache-2.0
// Ring attention inside a model.
#pragma once

#include <latpar/kernel/host.hpp>
#include <latpar/layer/detail/agreed_plans.hpp>
#include <latpar/layer/detail/ring_passing.hpp>

#include <string>
#include <string_view>
#include <utility>

namespace latpar::inline v0::layer {

/// An attention over tokens that lie on several ranks: keys and values travel round a ring, and
/// each rank merges what its own queries find in them.
///
/// The exchange of the next block is started before `attend` works on the present one and waited
/// for after it; what of it is hidden depends on the communicator (thread ranks move messages when
/// they wait). Any number of ranks goes with any number of heads; key-only rows travel with the
/// rank's own keys. `attend` must write its lse: the output is NaN where it did not. Equal to
/// attention on one rank to rounding.
///
/// Ranks: all ranks of the communicator construct it and make every call but `use`.
/// Stream: ordered on it; the host waits for messages.
/// Memory: `plan.workspace_bytes(rank)` from `source`, taken by the constructor and, for a plan
/// that needs more, by `add`. Keys that do not lie as they travel (dense, all key heads of a token
/// together) are packed, unless `keys_are_dense` promised that there are none. Where the ranks reach
/// each other's (direct_communicator), messages name their targets there, and it is not given back
/// after a failure. out is none of q, k and v.
/// Errors: usage_error on every rank if the plans differ, the ranks then go on; what `attend`
/// throws, and views that do not fit the plan, abort the communicator with their message.
/// Source: Ring Attention (arXiv 2310.01889).
template <attention Attend, communicator Comm, kernel_set Kernels = kernel::host>
class ring {
public:
    ring(Attend attend, Comm& comm, ring_plan plan, Kernels kernels = {}, memory_source source = {})
        : passing_(std::move(attend), comm, kernels, source) {
        guarded(comm, [&] { detail::check_memory(comm, kernels, source); });
        use(add(std::move(plan)));
    }

    [[nodiscard]] const ring_plan& plan() const noexcept { return passing_.plan(); }
    [[nodiscard]] Attend& attend() noexcept { return passing_.inner(); }

    /// Agrees on another plan, for other tokens, and takes the memory that it needs. The number to
    /// use it by; the constructor's plan is number 0. All ranks call it.
    [[nodiscard]] int add(ring_plan plan) {
        Comm& comm = passing_.comm();
        std::string text = plan.fingerprint();
        agree_on(comm, "the ring plan", text);
        latpar::detail::require(plan.ranks == comm.size(), "a ring was planned for ", plan.ranks,
                                " ranks, the communicator has ", comm.size(),
                                "; plan for its size");
        return guarded(comm, [&] {
            const int id = plans_.add(std::move(plan), std::move(text));
            passing_.reserve(plans_.at(id));
            return id;
        });
    }
    /// Goes on with a plan that was added, on this rank; takes no memory.
    void use(int id) { passing_.use(plans_.at(id)); }

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
    detail::agreed_plans<ring_plan> plans_;
    detail::ring_passing<Attend, Comm, Kernels> passing_;
};

}  // namespace latpar::inline v0::layer

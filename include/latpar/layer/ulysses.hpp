// SPDX-License-Identifier: Apache-2.0
// Ulysses-style sequence parallelism inside a model's attention.
#pragma once

#include <latpar/kernel/host.hpp>
#include <latpar/layer/detail/head_groups.hpp>
#include <latpar/layer/detail/ulysses_exchange.hpp>

#include <string_view>
#include <utility>

namespace latpar::inline v0::layer {

/// An attention over tokens that lie on several ranks: each rank attends for some heads over all
/// tokens.
///
/// Before the user's `attend` an exchange brings queries, keys and values of the rank's heads
/// together, after it another takes the output back. Equal to attention on one rank but for the order of
/// its sums, if `attend` has the same order for any number of heads to the bit. Tokens may be uneven, heads need not
/// divide by the ranks, groups of query heads may be cut, joint tokens count once, tokens that are
/// no keys do not travel as such.
///
/// Ranks: all ranks of the communicator construct it and make every call.
/// Stream: ordered on it; the host waits for messages.
/// Memory: `plan.workspace_bytes(rank)` from `source`, taken by the constructor.
/// Errors: usage_error on every rank if the plans differ; what `attend` throws, and views that do
/// not fit the plan, abort the communicator with their message.
/// Source: DeepSpeed-Ulysses (arXiv 2309.14509).
template <attention Attend, communicator Comm, kernel_set Kernels = kernel::host>
class ulysses {
public:
    ulysses(Attend attend, Comm& comm, ulysses_plan plan, Kernels kernels = {},
            memory_source source = {})
        : exchange_(detail::head_groups<Attend>(std::move(attend)), comm, std::move(kernels),
                    source) {
        use(std::move(plan));
    }

    [[nodiscard]] const ulysses_plan& plan() const noexcept { return exchange_.plan(); }
    [[nodiscard]] Attend& attend() noexcept { return exchange_.inner().attend(); }

    /// Goes on with another plan, for other tokens; memory grows if it must. All ranks call it.
    void use(ulysses_plan plan) {
        Comm& comm = exchange_.comm();
        guarded(comm, [&] {
            agree_on(comm, "the Ulysses plan", plan.fingerprint());
            latpar::detail::require(plan.ranks == comm.size(), "Ulysses was planned for ",
                                    plan.ranks, " ranks, the communicator has ", comm.size(),
                                    "; plan for its size");
            const head_share& own = plan.shares[static_cast<std::size_t>(comm.rank())];
            exchange_.inner().set(own.first, plan.shape.heads / plan.shape.key_heads);
            exchange_.use(std::move(plan));
        });
    }

    /// `lse` must be null: the logs stay on the ranks that attended.
    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse = {}, stream_ref stream = {}) {
        guarded(exchange_.comm(), [&] {
            latpar::detail::require(lse.data == nullptr, "ulysses does not return an lse; pass {}");
            exchange_.run(q, k, v, out, stream);
        });
    }

    void abort(std::string_view reason) { exchange_.comm().abort(reason); }

private:
    detail::ulysses_exchange<detail::head_groups<Attend>, Comm, Kernels> exchange_;
};

}  // namespace latpar::inline v0::layer

// SPDX-License-Identifier: Apache-2.0
// Ulysses-style sequence parallelism inside a model's attention.
#pragma once

#include <latpar/kernel/host.hpp>
#include <latpar/layer/detail/agreed_plans.hpp>
#include <latpar/layer/detail/head_groups.hpp>
#include <latpar/layer/detail/ulysses_exchange.hpp>

#include <string>
#include <string_view>
#include <utility>

namespace latpar::inline v0::layer {

/// An attention over tokens that lie on several ranks: each rank attends for some heads over all
/// tokens.
///
/// Before the user's `attend` an exchange brings queries, keys and values of the rank's heads
/// together, after it another takes the output back. Equal to attention on one rank, to the bit if
/// `attend` gives a head the same bits whatever other heads it is called with. Tokens may be
/// uneven, heads need not divide by the ranks, groups of query heads may be cut, joint tokens count
/// once, tokens that are no keys do not travel as such, key-only rows as nothing else.
///
/// Ranks: all ranks of the communicator construct it and make every call but `use`.
/// Stream: ordered on it; the host waits for messages.
/// Memory: `plan.workspace_bytes(rank)` from `source`, taken by the constructor and, for a plan
/// that needs more, by `add`. Where the ranks reach each other's (direct_communicator), they write
/// to it, and it is not given back after a failure. out is none of q, k and v.
/// Errors: usage_error on every rank if the plans differ, the ranks then go on; what `attend`
/// throws, and views that do not fit the plan, abort the communicator with their message.
/// Source: DeepSpeed-Ulysses (arXiv 2309.14509).
template <attention Attend, communicator Comm, kernel_set Kernels = kernel::host>
class ulysses {
public:
    ulysses(Attend attend, Comm& comm, ulysses_plan plan, Kernels kernels = {},
            memory_source source = {})
        : exchange_(detail::head_groups<Attend>(std::move(attend)), comm, kernels, source) {
        guarded(comm, [&] { detail::check_memory(comm, kernels, source); });
        use(add(std::move(plan)));
    }

    [[nodiscard]] const ulysses_plan& plan() const noexcept { return exchange_.plan(); }
    [[nodiscard]] Attend& attend() noexcept { return exchange_.inner().attend(); }

    /// Agrees on another plan, for other tokens, and takes the memory that it needs. The number to
    /// use it by; the constructor's plan is number 0. All ranks call it.
    [[nodiscard]] int add(ulysses_plan plan) {
        Comm& comm = exchange_.comm();
        std::string text = plan.fingerprint();
        agree_on(comm, "the Ulysses plan", text);
        latpar::detail::require(plan.ranks == comm.size(), "Ulysses was planned for ", plan.ranks,
                                " ranks, the communicator has ", comm.size(),
                                "; plan for its size");
        return guarded(comm, [&] {
            const int id = plans_.add(std::move(plan), std::move(text));
            exchange_.reserve(plans_.at(id));
            return id;
        });
    }
    /// Goes on with a plan that was added, on this rank; takes no memory.
    void use(int id) {
        const ulysses_plan& plan = plans_.at(id);
        const head_share& own = plan.shares[static_cast<std::size_t>(exchange_.comm().rank())];
        exchange_.inner().set(own.first, plan.shape.heads / plan.shape.key_heads);
        exchange_.use(plan);
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
    detail::agreed_plans<ulysses_plan> plans_;
    detail::ulysses_exchange<detail::head_groups<Attend>, Comm, Kernels> exchange_;
};

}  // namespace latpar::inline v0::layer

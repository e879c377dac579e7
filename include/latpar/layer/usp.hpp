// SPDX-License-Identifier: Apache-2.0
// Ulysses and ring attention together, on a mesh of both.
#pragma once

#include <latpar/comm/collectives.hpp>
#include <latpar/comm/detail/mesh_agreement.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/layer/detail/agreed_plans.hpp>
#include <latpar/layer/detail/head_groups.hpp>
#include <latpar/layer/detail/ring_passing.hpp>
#include <latpar/layer/detail/ulysses_exchange.hpp>
#include <latpar/layer/usp_plan.hpp>

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace latpar::inline v0::layer {

/// An attention over tokens that lie on a mesh of ranks: Ulysses among near ranks, a ring across.
///
/// For more ranks than heads, or where only some ranks are near each other. With one rank along
/// either axis it is the other alone. `attend` must write its lse.
///
/// Ranks: all ranks of both communicators construct it and make every call but `use`;
/// `ulysses_ranks` are consecutive in the token sequence.
/// Stream, memory, errors: as `ulysses` and `ring`; plans that differ are a usage_error on every
/// rank of both communicators.
/// Source: USP (arXiv 2405.07719).
template <attention Attend, communicator Comm, kernel_set Kernels = kernel::host>
class usp {
public:
    usp(Attend attend, Comm& ulysses_ranks, Comm& ring_ranks, usp_plan plan, Kernels kernels = {},
        memory_source source = {})
        : exchange_(
              passing(detail::head_groups<Attend>(std::move(attend)), ring_ranks, kernels, source),
              ulysses_ranks, kernels, source) {
        guarded(*this, [&] {
            detail::check_memory(ulysses_ranks, kernels, source);
            detail::check_memory(ring_ranks, kernels, source);
        });
        use(add(std::move(plan)));
    }

    [[nodiscard]] const usp_plan& plan() const noexcept { return *plan_; }
    [[nodiscard]] Attend& attend() noexcept { return exchange_.inner().inner().attend(); }

    /// Agrees on another plan, for other tokens, and takes the memory that it needs. The number to
    /// use it by; the constructor's plan is number 0. All ranks call it.
    [[nodiscard]] int add(usp_plan plan) {
        Comm& near = exchange_.comm();
        Comm& far = exchange_.inner().comm();
        std::string text = plan.fingerprint();
        const std::array<Comm*, 2> axes{&far, &near};
        latpar::detail::agree_on_mesh(std::span<Comm* const>(axes), "the USP plan", text);
        latpar::detail::require(plan.ulysses_ranks == near.size() && plan.ring_ranks == far.size(),
                                "USP was planned for ulysses=", plan.ulysses_ranks,
                                ",ring=", plan.ring_ranks, ", the communicators have ", near.size(),
                                " and ", far.size(), " ranks; plan for their sizes");
        return guarded(*this, [&] {
            const int id = plans_.add(std::move(plan), std::move(text));
            const int rank = own_rank(plans_.at(id));
            exchange_.reserve(plans_.at(id).row_of(rank));
            exchange_.inner().reserve(plans_.at(id).ring_of(rank));
            return id;
        });
    }
    /// Goes on with a plan that was added, on this rank; takes no memory.
    void use(int id) {
        const usp_plan& plan = plans_.at(id);
        const int rank = own_rank(plan);
        const head_share& own =
            plan.row_of(rank).shares[static_cast<std::size_t>(exchange_.comm().rank())];
        exchange_.inner().inner().set(own.first, plan.shape.heads / plan.shape.key_heads);
        exchange_.inner().use(plan.ring_of(rank));
        exchange_.use(plan.row_of(rank));
        plan_ = &plan;
    }

    /// `lse` must be null.
    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse = {}, stream_ref stream = {}) {
        guarded(*this, [&] {
            latpar::detail::require(lse.data == nullptr, "usp does not return an lse; pass {}");
            exchange_.run(q, k, v, out, stream);
        });
    }

    /// Completes rows [tokens of all ranks, columns], of which each rank has filled those of its
    /// own tokens; joint tokens are not among them. Dense; float32 or any type that travels.
    void gather(basic_view<std::byte, 2> rows, stream_ref stream = {}) {
        guarded(*this, [&] {
            Comm& near = exchange_.comm();
            Comm& far = exchange_.inner().comm();
            const index_t columns = rows.extents[1];
            const int first = plan_->rank_of(0, far.rank());
            const index_t all = plan_->token_range(plan_->ranks() - 1).end;
            latpar::detail::require(rows.extents[0] == all && rows.is_contiguous(), "rows of ",
                                    rows.extents[0], " tokens were to be gathered, the plan has ",
                                    all, "; pass a dense row for each token of all ranks");
            counts_.clear();
            for (int u = 0; u < plan_->ulysses_ranks; ++u) {
                counts_.push_back(plan_->token_range(first + u).size() * columns);
            }
            const elements whole = elements_of(rows);
            const row_range own = plan_->token_range(first + near.rank());
            const index_t row_begin = plan_->token_range(first).begin;
            const index_t row_end = plan_->token_range(first + plan_->ulysses_ranks - 1).end;
            const elements row = whole.part(row_begin * columns, (row_end - row_begin) * columns);
            all_gather_v(near, whole.part(own.begin * columns, own.size() * columns), row, counts_,
                         stream);
            counts_.clear();
            for (const index_t tokens : plan_->rings.front().sequence.tokens) {
                counts_.push_back(tokens * columns);
            }
            all_gather_v(far, row, whole, counts_, stream);
        });
    }

    void abort(std::string_view reason) {
        exchange_.comm().abort(reason);
        exchange_.inner().comm().abort(reason);
    }

private:
    using passing = detail::ring_passing<detail::head_groups<Attend>, Comm, Kernels>;

    static elements elements_of(const basic_view<std::byte, 2>& rows) {
        return basic_view<std::byte, 1>{rows.data, {rows.elements()}, {1}, rows.type, rows.space};
    }

    [[nodiscard]] int own_rank(const usp_plan& plan) {
        return plan.rank_of(exchange_.comm().rank(), exchange_.inner().comm().rank());
    }

    detail::agreed_plans<usp_plan> plans_;
    const usp_plan* plan_ = nullptr;
    std::vector<index_t> counts_;
    detail::ulysses_exchange<passing, Comm, Kernels> exchange_;
};

}  // namespace latpar::inline v0::layer

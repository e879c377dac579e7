// SPDX-License-Identifier: Apache-2.0
// Ulysses and ring attention together, on a mesh of both.
#pragma once

#include <latpar/comm/collectives.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/layer/detail/head_groups.hpp>
#include <latpar/layer/detail/ring_passing.hpp>
#include <latpar/layer/detail/ulysses_exchange.hpp>
#include <latpar/layer/usp_plan.hpp>

#include <string_view>
#include <utility>
#include <vector>

namespace latpar::inline v0::layer {

/// An attention over tokens that lie on a mesh of ranks: Ulysses among near ranks, a ring across.
///
/// For more ranks than heads, or where only some ranks are near each other. With one rank along
/// either axis it is the other alone. `attend` must write its lse.
///
/// Ranks: all ranks of both communicators construct it and make every call; `ulysses_ranks` are
/// consecutive in the token sequence.
/// Stream, memory, errors: as `ulysses` and `ring`.
/// Source: USP (arXiv 2405.07719).
template <attention Attend, communicator Comm, kernel_set Kernels = kernel::host>
class usp {
public:
    usp(Attend attend, Comm& ulysses_ranks, Comm& ring_ranks, usp_plan plan, Kernels kernels = {},
        memory_source source = {})
        : exchange_(
              passing(detail::head_groups<Attend>(std::move(attend)), ring_ranks, kernels, source),
              ulysses_ranks, kernels, source) {
        use(std::move(plan));
    }

    [[nodiscard]] const usp_plan& plan() const noexcept { return plan_; }
    [[nodiscard]] Attend& attend() noexcept { return exchange_.inner().inner().attend(); }

    /// Goes on with another plan, for other tokens; memory grows if it must. All ranks call it.
    /// `is_agreed`: with a plan that they have used before.
    void use(usp_plan plan, bool is_agreed = false) {
        guarded(*this, [&] {
            Comm& near = exchange_.comm();
            Comm& far = exchange_.inner().comm();
            if (!is_agreed) {
                const std::string text = plan.fingerprint();
                agree_on(near, "the USP plan", text);
                agree_on(far, "the USP plan", text);
            }
            latpar::detail::require(
                plan.ulysses_ranks == near.size() && plan.ring_ranks == far.size(),
                "USP was planned for ulysses=", plan.ulysses_ranks, ",ring=", plan.ring_ranks,
                ", the communicators have ", near.size(), " and ", far.size(),
                " ranks; plan for their sizes");
            plan_ = std::move(plan);
            const int rank = far.rank() * near.size() + near.rank();
            const head_share& own =
                plan_.row_of(rank).shares[static_cast<std::size_t>(near.rank())];
            exchange_.inner().inner().set(own.first, plan_.shape.heads / plan_.shape.key_heads);
            exchange_.inner().use(plan_.ring_of(rank));
            exchange_.use(plan_.row_of(rank));
        });
    }

    /// `lse` must be null.
    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse = {}, stream_ref stream = {}) {
        guarded(*this, [&] {
            latpar::detail::require(lse.data == nullptr, "usp does not return an lse; pass {}");
            exchange_.run(q, k, v, out, stream);
        });
    }

    /// Completes rows [tokens of all ranks, columns], of which each rank has filled those of its own
    /// tokens; joint tokens are not among them. Dense; float32 or any type that travels.
    void gather(basic_view<std::byte, 2> rows, stream_ref stream = {}) {
        guarded(*this, [&] {
            Comm& near = exchange_.comm();
            Comm& far = exchange_.inner().comm();
            const index_t columns = rows.extents[1];
            index_t all = 0;
            std::vector<index_t> far_counts;
            for (const ulysses_plan& row : plan_.rows) {
                index_t tokens = 0;
                for (const index_t n : row.sequence.tokens) tokens += n;
                far_counts.push_back(tokens * columns);
                all += tokens;
            }
            latpar::detail::require(rows.extents[0] == all && rows.is_contiguous(), "rows of ",
                                    rows.extents[0], " tokens were to be gathered, the plan has ",
                                    all, "; pass a dense row for each token of all ranks");
            const elements whole = elements_of(rows);
            index_t begin = 0;
            for (int r = 0; r < far.rank(); ++r) begin += far_counts[static_cast<std::size_t>(r)];
            const elements row =
                whole.part(begin, far_counts[static_cast<std::size_t>(far.rank())]);
            std::vector<index_t> near_counts =
                plan_.rows[static_cast<std::size_t>(far.rank())].sequence.tokens;
            index_t own = 0;
            for (std::size_t r = 0; r < near_counts.size(); ++r) {
                near_counts[r] *= columns;
                if (static_cast<int>(r) < near.rank()) own += near_counts[r];
            }
            all_gather_v(near, row.part(own, near_counts[static_cast<std::size_t>(near.rank())]),
                         row, near_counts, stream);
            all_gather_v(far, row, whole, far_counts, stream);
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

    usp_plan plan_;
    detail::ulysses_exchange<passing, Comm, Kernels> exchange_;
};

}  // namespace latpar::inline v0::layer

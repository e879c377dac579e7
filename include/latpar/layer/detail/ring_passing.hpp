// SPDX-License-Identifier: Apache-2.0
// Attention over keys that travel round a ring.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/kernel/kernel_set.hpp>
#include <latpar/layer/detail/rows.hpp>
#include <latpar/layer/ring_plan.hpp>

#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace latpar::inline v0::layer::detail {

/// Passes keys and values from rank to rank, attends over each block between starting the exchange
/// of the next and waiting for it, and merges the results. An attention itself, so that Ulysses can
/// stand around it.
template <attention Inner, communicator Comm, kernel_set Kernels>
class ring_passing {
public:
    static constexpr bool is_collective = true;

    ring_passing(Inner inner, Comm& comm, Kernels kernels, memory_source source)
        : inner_(std::move(inner)), comm_(&comm), kernels_(std::move(kernels)), source_(source) {}

    [[nodiscard]] Inner& inner() noexcept { return inner_; }
    [[nodiscard]] Comm& comm() noexcept { return *comm_; }
    [[nodiscard]] const ring_plan& plan() const noexcept { return *plan_; }

    /// Takes the memory for a plan that all ranks have agreed on.
    void reserve(const ring_plan& plan) {
        arena_.reserve([&](int rank) { return plan.workspace_bytes(rank); }, source_, *comm_);
    }
    /// Goes on with a plan whose memory was taken, and which outlives its use.
    void use(const ring_plan& plan) {
        plan_ = &plan;
        query_rows_ = plan.query_rows(comm_->rank());
    }

    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view, stream_ref stream) {
        check(q, k, v, out);
        const int self = comm_->rank();
        arena_.rewind();
        std::array<heads_view, 4> travelling;
        if (plan_->ranks > 1) {
            // First, so that they lie alike on all ranks.
            const std::array<index_t, 3> most{plan_->most_keys(), plan_->shape.key_heads,
                                              plan_->shape.head_dim};
            for (heads_view& view : travelling) {
                view = arena_.take(most, plan_->shape.type, source_.space);
            }
        }
        if (plan_->is_masked() || (plan_->ranks > 1 && !(travels(k) && travels(v)))) {
            latpar::detail::require(plan_->may_pack(self), "rank ", self,
                                    " planned for dense keys, those that were passed have gaps; "
                                    "pass them dense or leave keys_are_dense out");
            pack(k, v, stream);
        }
        if (plan_->ranks == 1) {
            if (k.extents[0] == 0) {
                clear(out, stream);
            } else {
                inner_(q, k, v, out, lse_view{}, stream);
            }
            return;
        }
        take_results(out, stream);
        // The own keys of what is attended over, which go on; joint ones stay.
        const_heads_view going_k = rows_of(k, plan_->joint_front_keys(), plan_->keys_of(self));
        const_heads_view going_v = rows_of(v, plan_->joint_front_keys(), plan_->keys_of(self));
        for (int step = 0; step < plan_->ranks; ++step) {
            const auto slot = static_cast<std::size_t>(2 * (step % 2));
            const index_t next =
                step + 1 < plan_->ranks ? plan_->keys_of(plan_->origin_of(self, step + 1)) : 0;
            const const_heads_view coming_k = rows_of(travelling[slot], 0, next);
            const const_heads_view coming_v = rows_of(travelling[slot + 1], 0, next);
            // Local, so that an exception ends what is in flight before the caller's keys can go.
            std::optional<exchange_type> passing;
            if (step + 1 < plan_->ranks) {
                passing.emplace(pass_on(going_k, going_v, coming_k, coming_v, stream));
            }
            if (step == 0) {
                attend_over(q, k, v, stream);
            } else {
                attend_over(q, going_k, going_v, stream);
            }
            if (passing) passing->wait();
            going_k = coming_k;
            going_v = coming_v;
        }
        finish(out, stream);
    }

private:
    using exchange_type =
        decltype(std::declval<Comm&>().start_exchange({}, {}, std::declval<stream_ref>()));

    /// Whether the own keys lie as they travel.
    [[nodiscard]] bool travels(const const_heads_view& view) const {
        return rows_of(view, plan_->joint_front_keys(), plan_->keys_of(comm_->rank()))
            .is_contiguous();
    }

    void clear(const heads_view& out, stream_ref stream) {
        const latent_view view = as_latent(out);
        kernels_.linear_combination({}, {}, {&view, 1}, stream);
    }

    /// Keys and values without the tokens that are none, dense, in place of those that were passed.
    void pack(const_heads_view& k, const_heads_view& v, stream_ref stream) {
        const int self = comm_->rank();
        const index_t front = plan_->sequence.joint_front;
        const index_t all =
            plan_->joint_front_keys() + plan_->keys_of(self) + plan_->joint_back_keys();
        copies_.clear();
        for (const_heads_view* view : {&k, &v}) {
            const heads_view to = arena_.take(
                std::array<index_t, 3>{all, plan_->shape.key_heads, plan_->shape.head_dim},
                plan_->shape.type, source_.space);
            index_t next = 0;
            const auto add = [&](const std::vector<row_range>& runs, index_t first) {
                for (const row_range& run : runs) {
                    copies_.push_back({as_latent(rows_of(*view, first + run.begin, run.size())),
                                       as_latent(rows_of(to, next, run.size()))});
                    next += run.size();
                }
            };
            if (plan_->is_packed) {
                copies_.push_back({as_latent(*view), as_latent(to)});
            } else {
                add(plan_->front_keys, 0);
                add(plan_->own_keys[static_cast<std::size_t>(self)], front);
                add(plan_->back_keys,
                    front + plan_->tokens_of(self) + plan_->sequence.key_only_of(self));
            }
            *view = to;
        }
        kernels_.copy_all(copies_, stream);
    }

    void take_results(const heads_view& out, stream_ref stream) {
        const dtype type = plan_->shape.type;
        part_ = arena_.take(out.extents, type, source_.space);
        const std::array<index_t, 2> logs{out.extents[0], out.extents[1]};
        lse_ = arena_.take(logs, dtype::f32, source_.space);
        part_lse_ = arena_.take(logs, dtype::f32, source_.space);
        joint_ = arena_.take(
            std::array<index_t, 3>{plan_->joint(), plan_->shape.heads, plan_->shape.head_dim}, type,
            source_.space);
        sum_ = type == dtype::f32 ? out : arena_.take(out.extents, dtype::f32, source_.space);
        is_empty_ = true;
        // An attention that does not write its lse shall not look right.
        constexpr float nan = std::numeric_limits<float>::quiet_NaN();
        const const_latent_view input = as_latent(lse_);
        const std::array<float, 2> coefficients{nan, nan};
        const std::array<latent_view, 2> outputs{as_latent(lse_), as_latent(part_lse_)};
        kernels_.linear_combination({&input, 1}, coefficients, outputs, stream);
    }

    [[nodiscard]] exchange_type pass_on(const const_heads_view& k, const const_heads_view& v,
                                        const const_heads_view& next_k,
                                        const const_heads_view& next_v, stream_ref stream) {
        sends_.clear();
        recvs_.clear();
        const int to = (comm_->rank() + 1) % plan_->ranks;
        const int from = (comm_->rank() + plan_->ranks - 1) % plan_->ranks;
        for (const auto& [view, coming] : {std::pair(&k, &next_k), std::pair(&v, &next_v)}) {
            if (view->elements() == 0) continue;
            sends_.push_back({view->data, view->elements(), view->type, to, view->space,
                              arena_.at(to, coming->data)});
        }
        for (const const_heads_view* view : {&next_k, &next_v}) {
            if (view->elements() == 0) continue;
            recvs_.push_back({const_cast<std::byte*>(view->data), view->elements(), view->type,
                              from, view->space, arena_.is_shared()});
        }
        return comm_->start_exchange(sends_, recvs_, stream);
    }

    void attend_over(const const_heads_view& q, const const_heads_view& k,
                     const const_heads_view& v, stream_ref stream) {
        if (k.extents[0] == 0) return;
        const bool direct = is_empty_ && plan_->shape.type == dtype::f32;
        for (const row_range& rows : query_rows_) {
            const auto part = [&](const auto& view) {
                return rows_of(view, rows.begin, rows.size());
            };
            if (direct) {
                inner_(part(q), k, v, part(sum_), part(lse_), stream);
                continue;
            }
            inner_(part(q), k, v, part(part_), part(part_lse_), stream);
            if (is_empty_) {
                kernels_.copy(as_latent(part(part_)), as_latent(part(sum_)), stream);
                kernels_.copy(as_latent(part(part_lse_)), as_latent(part(lse_)), stream);
            } else {
                kernels_.merge_attention(as_latent(part(sum_)), as_latent(part(lse_)),
                                         as_latent(part(part_)), as_latent(part(part_lse_)),
                                         stream);
            }
        }
        is_empty_ = false;
    }

    /// The sums become the output, and that of the joint tokens goes to all ranks.
    void finish(const heads_view& out, stream_ref stream) {
        for (const row_range& rows : query_rows_) {
            const heads_view to = rows_of(out, rows.begin, rows.size());
            if (is_empty_) {
                clear(to, stream);
            } else if (plan_->shape.type != dtype::f32) {
                kernels_.copy(as_latent(rows_of(sum_, rows.begin, rows.size())), as_latent(to),
                              stream);
            }
        }
        if (plan_->joint() == 0) return;
        const int self = comm_->rank();
        copies_.clear();
        add_joint_copies(out, plan_->joint_queries(self), true);
        kernels_.copy_all(copies_, stream);
        sends_.clear();
        recvs_.clear();
        const auto share = [&](int rank) {
            const row_range rows = plan_->joint_queries(rank);
            return rows_of(joint_, rows.begin, rows.size());
        };
        for (int peer = 0; peer < plan_->ranks; ++peer) {
            if (peer == self) continue;
            const heads_view mine = share(self);
            const heads_view theirs = share(peer);
            if (mine.elements() > 0) {
                sends_.push_back({mine.data, mine.elements(), mine.type, peer, mine.space});
            }
            if (theirs.elements() > 0) {
                recvs_.push_back({theirs.data, theirs.elements(), theirs.type, peer, theirs.space});
            }
        }
        exchange(*comm_, std::span<const send_op>(sends_), std::span<const recv_op>(recvs_),
                 stream);
        copies_.clear();
        for (int peer = 0; peer < plan_->ranks; ++peer) {
            if (peer != self) add_joint_copies(out, plan_->joint_queries(peer), false);
        }
        kernels_.copy_all(copies_, stream);
    }

    /// Joint tokens `share` between the output and where they are collected.
    void add_joint_copies(const heads_view& out, const row_range& share, bool to_joint) {
        const index_t front = plan_->sequence.joint_front;
        const index_t own = plan_->tokens_of(comm_->rank());
        const row_range ahead{share.begin, std::min(share.end, front)};
        const row_range behind{std::max(share.begin, front), share.end};
        for (const auto& [rows, shift] : {std::pair(ahead, index_t{0}), std::pair(behind, own)}) {
            if (rows.size() <= 0) continue;
            const latent_view here = as_latent(rows_of(out, rows.begin + shift, rows.size()));
            const latent_view there = as_latent(rows_of(joint_, rows.begin, rows.size()));
            copies_.push_back({to_joint ? here : there, to_joint ? there : here});
        }
    }

    void check(const const_heads_view& q, const const_heads_view& k, const const_heads_view& v,
               const heads_view& out) const {
        const int self = comm_->rank();
        check_views(plan_->shape, self, plan_->rows_of(self), plan_->key_rows_of(self),
                    source_.space, q, k, v, out);
    }

    Inner inner_;
    Comm* comm_;
    Kernels kernels_;
    memory_source source_;
    const ring_plan* plan_ = nullptr;
    std::vector<row_range> query_rows_;
    arena arena_;
    heads_view part_, joint_, sum_;
    lse_view lse_, part_lse_;
    bool is_empty_ = true;  ///< no key was attended over yet
    // Reused from call to call, so that the steady state allocates nothing.
    std::vector<kernel::copy_pair> copies_;
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
};

}  // namespace latpar::inline v0::layer::detail

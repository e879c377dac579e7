// SPDX-License-Identifier: Apache-2.0
// From all heads of some tokens to some heads of all tokens, and back.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/kernel/kernel_set.hpp>
#include <latpar/layer/detail/rows.hpp>
#include <latpar/layer/ulysses_plan.hpp>

#include <span>
#include <utility>
#include <vector>

namespace latpar::inline v0::layer::detail {

/// The two exchanges of Ulysses around an attention over all tokens.
///
/// Each sends what crosses in messages; where the ranks reach each other's memory, kernels write it
/// to where it belongs, and the ranks meet.
///
/// `Inner` is called with [tokens of all ranks, own heads, head_dim], joint tokens in front and
/// behind as ever, keys and values without the tokens that are no keys, with key-only rows of all
/// ranks behind all tokens.
template <attention Inner, communicator Comm, kernel_set Kernels>
class ulysses_exchange {
public:
    ulysses_exchange(Inner inner, Comm& comm, Kernels kernels, memory_source source)
        : inner_(std::move(inner)), comm_(&comm), kernels_(std::move(kernels)), source_(source) {}

    [[nodiscard]] Inner& inner() noexcept { return inner_; }
    [[nodiscard]] Comm& comm() noexcept { return *comm_; }
    [[nodiscard]] const ulysses_plan& plan() const noexcept { return *plan_; }

    /// Takes the memory for a plan that all ranks have agreed on.
    void reserve(const ulysses_plan& plan) {
        gathered_.reserve([&](int rank) { return plan.workspace_bytes(rank); }, source_, *comm_);
        check_layout(plan);
    }
    /// Goes on with a plan whose memory was taken, and which outlives its use.
    void use(const ulysses_plan& plan) { plan_ = &plan; }

    void run(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
             stream_ref stream) {
        check(q, k, v, out);
        if (plan_->ranks == 1 && !plan_->is_masked()) {
            attend(q, k, v, out, stream);
            return;
        }
        const int self = comm_->rank();
        sends_.clear();
        recvs_.clear();
        copies_.clear();
        gathered_.rewind();
        if (plan_->ranks == 1) {
            const head_share& own = share(self);
            const std::array<index_t, 3> keys{plan_->all_keys(), own.key_count,
                                              plan_->shape.head_dim};
            const heads_view all_k = take(keys);
            const heads_view all_v = take(keys);
            gather_keys(k, all_k);
            gather_keys(v, all_v);
            kernels_.copy_all(copies_, stream);
            attend(q, all_k, all_v, out, stream);
            return;
        }
        // Nobody writes to what another still reads of the call before, be it by another plan.
        if (gathered_.is_shared()) meet(stream);
        const gathered here = gathered_of(self, gathered_.data());
        share_out(q, k, v, here, stream);
        attend(here.q, here.k, here.v, here.out, stream);
        bring_back(here, out, stream);
    }

private:
    [[nodiscard]] const head_share& share(int rank) const {
        return plan_->shares[static_cast<std::size_t>(rank)];
    }
    /// Attends; without any key the output is zero. A ring may still find some elsewhere.
    void attend(const const_heads_view& q, const const_heads_view& k, const const_heads_view& v,
                const heads_view& out, stream_ref stream) {
        if (Inner::is_collective || plan_->all_keys() > 0) {
            inner_(q, k, v, out, lse_view{}, stream);
        } else {
            const latent_view view = as_latent(out);
            kernels_.linear_combination({}, {}, {&view, 1}, stream);
        }
    }
    [[nodiscard]] heads_view take(const std::array<index_t, 3>& extents) {
        return gathered_.take(extents, plan_->shape.type, source_.space);
    }

    /// What a rank gathers, and where messages to and from it lie, in its memory that begins at
    /// `memory`.
    struct gathered {
        heads_view k, v, q, out;
        std::byte* messages;
    };
    [[nodiscard]] gathered gathered_of(int rank, std::byte* memory) const {
        const head_share& own = share(rank);
        const auto next = [&](index_t rows, index_t heads) {
            const std::array<index_t, 3> extents{rows, heads, plan_->shape.head_dim};
            const heads_view view{memory, extents, dense_strides(extents), plan_->shape.type,
                                  source_.space};
            memory += latpar::detail::aligned(view.bytes());
            return view;
        };
        gathered out;
        out.k = next(plan_->all_keys(), own.key_count);
        out.v = next(plan_->all_keys(), own.key_count);
        out.q = next(plan_->all_tokens(), own.count);
        out.out = next(plan_->all_tokens(), own.count);
        out.messages = memory;
        return out;
    }
    /// Those of a rank whose memory is reached.
    [[nodiscard]] gathered at_peer(int rank) const { return gathered_of(rank, gathered_.at(rank)); }
    template <class View>
    [[nodiscard]] static View whole(const View& view, const row_range& rows) {
        return rows_of(view, rows.begin, rows.size());
    }
    template <class View>
    [[nodiscard]] static View heads_of(const View& view, const row_range& rows,
                                       const head_share& heads) {
        return part_of(view, rows.begin, rows.size(), heads.first, heads.count);
    }
    template <class View>
    [[nodiscard]] static View key_heads_of(const View& view, const row_range& rows,
                                           const head_share& heads) {
        return part_of(view, rows.begin, rows.size(), heads.first_key, heads.key_count);
    }
    /// Errors: error if what a rank gathers is not what its plan says that it takes.
    void check_layout(const ulysses_plan& plan) {
        if (plan.ranks == 1 || gathered_.data() == nullptr) return;
        const ulysses_plan* const in_use = std::exchange(plan_, &plan);
        for (int rank = 0; rank < plan.ranks; ++rank) {
            const index_t end = gathered_of(rank, gathered_.data()).messages - gathered_.data() +
                                plan.message_bytes(rank);
            latpar::detail::require<error>(end == plan.workspace_bytes(rank), "an attention takes ",
                                           end, " bytes on rank ", rank, " of the ",
                                           plan.workspace_bytes(rank), " that were planned");
        }
        plan_ = in_use;
    }
    void add_copy(const_heads_view from, heads_view to) {
        if (to.elements() > 0) copies_.push_back({as_latent(from), as_latent(to)});
    }

    /// The rows of a rank's own tokens among those of all ranks.
    [[nodiscard]] row_range gathered_rows(int rank) const {
        index_t begin = plan_->sequence.joint_front;
        for (int r = 0; r < rank; ++r) begin += plan_->tokens_of(r);
        return {begin, begin + plan_->tokens_of(rank)};
    }
    /// Its tokens that are keys, and its key-only rows, among the keys of all ranks.
    [[nodiscard]] row_range gathered_keys(int rank) const {
        index_t begin = count(plan_->front_keys);
        for (int r = 0; r < rank; ++r) begin += count(own_keys(r));
        return {begin, begin + count(own_keys(rank))};
    }
    [[nodiscard]] row_range gathered_key_only(int rank) const {
        index_t begin = gathered_keys(plan_->ranks - 1).end;
        for (int r = 0; r < rank; ++r) begin += plan_->sequence.key_only_of(r);
        return {begin, begin + plan_->sequence.key_only_of(rank)};
    }
    /// Where key-only rows lie in what a rank passes.
    [[nodiscard]] row_range key_only_rows() const {
        const index_t begin = plan_->sequence.joint_front + plan_->tokens_of(comm_->rank());
        return {begin, begin + plan_->sequence.key_only_of(comm_->rank())};
    }
    [[nodiscard]] const std::vector<row_range>& own_keys(int rank) const {
        return plan_->own_keys[static_cast<std::size_t>(rank)];
    }
    [[nodiscard]] static index_t count(const std::vector<row_range>& runs) {
        index_t out = 0;
        for (const row_range& run : runs) out += run.size();
        return out;
    }

    /// This rank's rows here and among those of all ranks: joint in front, own, joint behind.
    [[nodiscard]] std::array<std::pair<row_range, row_range>, 3> row_pairs() const {
        const index_t front = plan_->sequence.joint_front;
        const index_t back = plan_->sequence.joint_back;
        const index_t own = plan_->tokens_of(comm_->rank());
        const index_t all = plan_->all_tokens();
        return {std::pair(row_range{0, front}, row_range{0, front}),
                std::pair(row_range{front, front + own}, gathered_rows(comm_->rank())),
                std::pair(row_range{front + own, front + own + back}, row_range{all - back, all})};
    }

    /// Copies this rank's keys, and the joint ones, of its own heads to where they are gathered.
    void gather_keys(const const_heads_view& from, const heads_view& to) {
        const int self = comm_->rank();
        const index_t front = plan_->sequence.joint_front;
        index_t next = 0;
        const auto add = [&](const std::vector<row_range>& runs, index_t first) {
            for (const row_range& run : runs) {
                add_copy(key_heads_of(from, {first + run.begin, first + run.end}, share(self)),
                         whole(to, {next, next + run.size()}));
                next += run.size();
            }
        };
        add(plan_->front_keys, 0);
        next = gathered_keys(self).begin;
        add(own_keys(self), front);
        add_copy(key_heads_of(from, key_only_rows(), share(self)),
                 whole(to, gathered_key_only(self)));
        next = plan_->all_keys() - count(plan_->back_keys);
        add(plan_->back_keys, key_only_rows().end);
    }

    /// The next rows of heads among the messages of a rank.
    [[nodiscard]] heads_view message(const gathered& at, index_t& used, index_t rows,
                                     index_t heads) const {
        const std::array<index_t, 3> extents{rows, heads, plan_->shape.head_dim};
        heads_view out{at.messages + used, extents, dense_strides(extents), plan_->shape.type,
                       source_.space};
        used += out.bytes();
        return out;
    }
    /// Where the output from `peer` lies among the messages of `rank`.
    [[nodiscard]] heads_view output_message(int rank, const gathered& at, int peer) const {
        index_t used = 0;
        for (int before = 0; before < peer; ++before) {
            if (before != rank) {
                static_cast<void>(message(at, used, plan_->rows_of(rank), share(before).count));
            }
        }
        return message(at, used, plan_->rows_of(rank), share(peer).count);
    }
    void send(const heads_view& data, int to) {
        if (data.elements() == 0) return;
        sends_.push_back({data.data, data.elements(), data.type, to, data.space});
    }
    void receive(const heads_view& data, int from) {
        if (data.elements() == 0) return;
        recvs_.push_back({data.data, data.elements(), data.type, from, data.space});
    }

    /// Queries, keys and values in one exchange. What arrives lands where it belongs.
    void share_out(const const_heads_view& q, const const_heads_view& k, const const_heads_view& v,
                   const gathered& here, stream_ref stream) {
        const int self = comm_->rank();
        const index_t front = plan_->sequence.joint_front;
        index_t used = 0;
        for (int peer = 0; peer < plan_->ranks; ++peer) {
            if (peer == self) continue;
            const head_share& theirs = share(peer);
            const index_t keys = count(own_keys(self));
            const index_t behind = key_only_rows().size();
            // Rows of this rank at the peer's, or the messages that bring them there.
            heads_view to_q, to_k, to_v, to_k_behind, to_v_behind;
            if (!gathered_.is_shared()) {
                to_q = message(here, used, plan_->tokens_of(self), theirs.count);
                to_k = message(here, used, keys, theirs.key_count);
                to_k_behind = message(here, used, behind, theirs.key_count);
                to_v = message(here, used, keys, theirs.key_count);
                to_v_behind = message(here, used, behind, theirs.key_count);
            } else {
                const gathered there = at_peer(peer);
                to_q = whole(there.q, gathered_rows(self));
                to_k = whole(there.k, gathered_keys(self));
                to_k_behind = whole(there.k, gathered_key_only(self));
                to_v = whole(there.v, gathered_keys(self));
                to_v_behind = whole(there.v, gathered_key_only(self));
            }
            add_copy(heads_of(q, {front, front + plan_->tokens_of(self)}, theirs), to_q);
            add_own_keys(k, theirs, to_k, to_k_behind);
            add_own_keys(v, theirs, to_v, to_v_behind);
            for (const heads_view* to : {&to_q, &to_k, &to_k_behind, &to_v, &to_v_behind}) {
                send(*to, peer);
            }
            receive(whole(here.q, gathered_rows(peer)), peer);
            for (const heads_view* to : {&here.k, &here.v}) {
                receive(whole(*to, gathered_keys(peer)), peer);
                receive(whole(*to, gathered_key_only(peer)), peer);
            }
        }
        exchange_beside(stream, [&] {
            for (const auto& [from, to] : row_pairs()) {
                add_copy(heads_of(q, from, share(self)), whole(here.q, to));
            }
            gather_keys(k, here.k);
            gather_keys(v, here.v);
        });
    }

    /// The copies of this rank's keys, of some heads, and of those behind its tokens.
    void add_own_keys(const const_heads_view& from, const head_share& heads, const heads_view& to,
                      const heads_view& behind) {
        const index_t front = plan_->sequence.joint_front;
        index_t next = 0;
        for (const row_range& run : own_keys(comm_->rank())) {
            add_copy(key_heads_of(from, {front + run.begin, front + run.end}, heads),
                     whole(to, {next, next + run.size()}));
            next += run.size();
        }
        add_copy(key_heads_of(from, key_only_rows(), heads), behind);
    }

    /// The output to the ranks of its tokens, that of joint tokens to all.
    void bring_back(const gathered& here, const heads_view& out, stream_ref stream) {
        const int self = comm_->rank();
        const index_t front = plan_->sequence.joint_front;
        const index_t all = plan_->all_tokens();
        const std::array<row_range, 2> joint{row_range{0, front},
                                             {all - plan_->sequence.joint_back, all}};
        for (int peer = 0; peer < plan_->ranks; ++peer) {
            if (peer == self) continue;
            const std::array<row_range, 3> rows{joint[0], gathered_rows(peer), joint[1]};
            const heads_view arriving = output_message(self, here, peer);
            heads_view leaving;
            if (gathered_.is_shared()) leaving = output_message(peer, at_peer(peer), self);
            index_t sent = 0;
            for (const row_range& part : rows) {
                const heads_view from = whole(here.out, part);
                send(from, peer);
                if (gathered_.is_shared()) {
                    add_copy(from, whole(leaving, {sent, sent + part.size()}));
                    sent += part.size();
                }
            }
            const index_t own = front + plan_->tokens_of(self);
            receive(whole(arriving, {0, front}), peer);
            receive(whole(arriving, {front, own}), peer);
            receive(whole(arriving, {own, plan_->rows_of(self)}), peer);
        }
        exchange_beside(stream, [&] {
            for (const auto& [to, from] : row_pairs()) {
                add_copy(whole(here.out, from), heads_of(out, to, share(self)));
            }
        });
        for (int peer = 0; peer < plan_->ranks; ++peer) {
            if (peer == self) continue;
            add_copy(output_message(self, here, peer),
                     heads_of(out, {0, plan_->rows_of(self)}, share(peer)));
        }
        copy_all(stream);
    }

    void copy_all(stream_ref stream) {
        if (!copies_.empty()) kernels_.copy_all(copies_, stream);
        copies_.clear();
    }
    /// Makes the copies, to messages that are then sent or to the peers; those that `add_more` adds
    /// need no message, and are made while those are under way.
    template <class AddMore>
    void exchange_beside(stream_ref stream, AddMore&& add_more) {
        if (!gathered_.is_shared()) {
            copy_all(stream);
            auto request = comm_->start_exchange(sends_, recvs_, stream);
            add_more();
            copy_all(stream);
            request.wait();
        } else {
            add_more();
            copy_all(stream);
            meet(stream);
        }
        sends_.clear();
        recvs_.clear();
    }
    /// All ranks have written what they write directly, and all of it is there.
    void meet(stream_ref stream) {
        if constexpr (direct_communicator<Comm>) {
            comm_->note(sends_, recvs_);
            comm_->meet(stream);
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
    const ulysses_plan* plan_ = nullptr;
    arena gathered_;
    // Reused from call to call, so that the steady state allocates nothing.
    std::vector<kernel::copy_pair> copies_;
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
};

}  // namespace latpar::inline v0::layer::detail

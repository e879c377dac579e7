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
        gathered_.reserve(plan.workspace_bytes(comm_->rank()), source_);
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
        const head_share& own = share(self);
        const std::array<index_t, 3> keys{plan_->all_keys(), own.key_count, plan_->shape.head_dim};
        gathered_.rewind();
        const heads_view all_k = take(keys);
        const heads_view all_v = take(keys);
        copies_.clear();
        gather_keys(k, all_k);
        gather_keys(v, all_v);
        if (plan_->ranks == 1) {
            kernels_.copy_all(copies_, stream);
            attend(q, all_k, all_v, out, stream);
            return;
        }
        const std::array<index_t, 3> queries{plan_->all_tokens(), own.count, plan_->shape.head_dim};
        const heads_view all_q = take(queries);
        const heads_view all_out = take(queries);
        message_ = gathered_.take(std::array<index_t, 1>{plan_->message_bytes(self)}, dtype::u8,
                                  source_.space);
        for (const auto& [from, to] : row_pairs())
            add_copy(heads_of(q, from, own), whole(all_q, to));
        share_out(q, k, v, all_q, all_k, all_v, stream);
        attend(all_q, all_k, all_v, all_out, stream);
        bring_back(all_out, out, stream);
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

    /// The next rows of heads in the message buffer.
    [[nodiscard]] heads_view message(index_t& used, index_t rows, index_t heads) const {
        const std::array<index_t, 3> extents{rows, heads, plan_->shape.head_dim};
        heads_view out{message_.data + used, extents, dense_strides(extents), plan_->shape.type,
                       source_.space};
        used += out.bytes();
        return out;
    }
    void send(const heads_view& data, int to) {
        if (data.elements() == 0) return;
        sends_.push_back({data.data, data.elements(), data.type, to, data.space});
    }
    void receive(const heads_view& data, int from) {
        if (data.elements() == 0) return;
        recvs_.push_back({data.data, data.elements(), data.type, from, data.space});
    }
    void exchange_all(stream_ref stream) {
        exchange(*comm_, std::span<const send_op>(sends_), std::span<const recv_op>(recvs_),
                 stream);
        sends_.clear();
        recvs_.clear();
    }

    /// Queries, keys and values in one exchange. What arrives lands where it belongs.
    void share_out(const const_heads_view& q, const const_heads_view& k, const const_heads_view& v,
                   const heads_view& all_q, const heads_view& all_k, const heads_view& all_v,
                   stream_ref stream) {
        const int self = comm_->rank();
        const index_t front = plan_->sequence.joint_front;
        index_t used = 0;
        for (int peer = 0; peer < plan_->ranks; ++peer) {
            if (peer == self) continue;
            const head_share& theirs = share(peer);
            const heads_view packed_q = message(used, plan_->tokens_of(self), theirs.count);
            add_copy(heads_of(q, {front, front + plan_->tokens_of(self)}, theirs), packed_q);
            send(packed_q, peer);
            for (const const_heads_view* from : {&k, &v}) {
                const heads_view packed = message(used, count(own_keys(self)), theirs.key_count);
                index_t next = 0;
                for (const row_range& run : own_keys(self)) {
                    add_copy(key_heads_of(*from, {front + run.begin, front + run.end}, theirs),
                             whole(packed, {next, next + run.size()}));
                    next += run.size();
                }
                send(packed, peer);
                const heads_view behind = message(used, key_only_rows().size(), theirs.key_count);
                add_copy(key_heads_of(*from, key_only_rows(), theirs), behind);
                send(behind, peer);
            }
            receive(whole(all_q, gathered_rows(peer)), peer);
            for (const heads_view* to : {&all_k, &all_v}) {
                receive(whole(*to, gathered_keys(peer)), peer);
                receive(whole(*to, gathered_key_only(peer)), peer);
            }
        }
        kernels_.copy_all(copies_, stream);
        exchange_all(stream);
    }

    /// The output to the ranks of its tokens, that of joint tokens to all.
    void bring_back(const heads_view& all_out, const heads_view& out, stream_ref stream) {
        const int self = comm_->rank();
        const index_t front = plan_->sequence.joint_front;
        const index_t back = plan_->sequence.joint_back;
        copies_.clear();
        index_t used = 0;
        for (int peer = 0; peer < plan_->ranks; ++peer) {
            if (peer == self) continue;
            send(whole(all_out, {0, front}), peer);
            send(whole(all_out, gathered_rows(peer)), peer);
            send(whole(all_out, {plan_->all_tokens() - back, plan_->all_tokens()}), peer);
            const heads_view packed = message(used, plan_->rows_of(self), share(peer).count);
            receive(whole(packed, {0, front}), peer);
            receive(whole(packed, {front, front + plan_->tokens_of(self)}), peer);
            receive(whole(packed, {front + plan_->tokens_of(self), plan_->rows_of(self)}), peer);
            add_copy(packed, heads_of(out, {0, plan_->rows_of(self)}, share(peer)));
        }
        for (const auto& [here, gathered] : row_pairs()) {
            add_copy(whole(all_out, gathered), heads_of(out, here, share(self)));
        }
        exchange_all(stream);
        kernels_.copy_all(copies_, stream);
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
    basic_view<std::byte, 1> message_;
    // Reused from call to call, so that the steady state allocates nothing.
    std::vector<kernel::copy_pair> copies_;
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
};

}  // namespace latpar::inline v0::layer::detail

// SPDX-License-Identifier: Apache-2.0
// Ulysses-style sequence parallelism, planned.
#include <latpar/core/memory.hpp>
#include <latpar/layer/ulysses_plan.hpp>

#include <layer/check_sequence.hpp>

#include <algorithm>

namespace latpar::inline v0::layer {

using detail::count_rows;
using detail::runs_of_keys;
using latpar::detail::require;

ulysses_plan plan_ulysses(const attention_shape& shape, token_sequence sequence, int ranks) {
    detail::check_sequence(shape, sequence, ranks);
    detail::simplify(sequence);
    require(ranks <= shape.heads, shape.heads, " heads cannot be spread on ", ranks,
            " ranks, each needs one; use a mesh such as ",
            detail::mesh_for_heads(shape.heads, ranks));
    ulysses_plan plan{shape, std::move(sequence), ranks, {}, {}, {}, {}};
    const index_t group = shape.heads / shape.key_heads;
    for (int rank = 0; rank < ranks; ++rank) {
        const index_t first = shape.heads * rank / ranks;
        const index_t last = shape.heads * (rank + 1) / ranks;
        const index_t first_key = first / group;
        plan.shares.push_back({first, last - first, first_key, (last - 1) / group + 1 - first_key});
        plan.own_keys.push_back(runs_of_keys(
            plan.sequence, detail::first_token(plan.sequence, rank), plan.tokens_of(rank)));
    }
    plan.front_keys = runs_of_keys(plan.sequence, 0, plan.sequence.joint_front);
    plan.back_keys = runs_of_keys(plan.sequence, plan.all_tokens() - plan.sequence.joint_back,
                                  plan.sequence.joint_back);
    return plan;
}

index_t ulysses_plan::tokens_of(int rank) const {
    return sequence.tokens[static_cast<std::size_t>(rank)];
}

index_t ulysses_plan::rows_of(int rank) const {
    return tokens_of(rank) + sequence.joint_front + sequence.joint_back;
}

index_t ulysses_plan::key_rows_of(int rank) const {
    return rows_of(rank) + sequence.key_only_of(rank);
}

index_t ulysses_plan::keys_of(int rank) const {
    return count_rows(own_keys[static_cast<std::size_t>(rank)]) + sequence.key_only_of(rank);
}

index_t ulysses_plan::all_tokens() const {
    return detail::count_tokens(sequence);
}

index_t ulysses_plan::all_keys() const {
    index_t out = count_rows(front_keys) + count_rows(back_keys);
    for (int rank = 0; rank < ranks; ++rank) out += keys_of(rank);
    return out;
}

bool ulysses_plan::is_masked() const noexcept {
    return !sequence.is_key.empty();
}

index_t ulysses_plan::bytes_sent_by(int rank) const {
    index_t rows = 0;
    for (int to = 0; to < ranks; ++to) {
        if (to == rank) continue;
        const head_share& theirs = shares[static_cast<std::size_t>(to)];
        const head_share& mine = shares[static_cast<std::size_t>(rank)];
        rows += tokens_of(rank) * theirs.count + 2 * keys_of(rank) * theirs.key_count;
        rows += rows_of(to) * mine.count;
    }
    return rows * shape.head_dim * size_of(shape.type);
}

index_t ulysses_plan::bytes_received_by(int rank) const {
    index_t rows = 0;
    for (int from = 0; from < ranks; ++from) {
        if (from == rank) continue;
        const head_share& theirs = shares[static_cast<std::size_t>(from)];
        const head_share& mine = shares[static_cast<std::size_t>(rank)];
        rows += tokens_of(from) * mine.count + 2 * keys_of(from) * mine.key_count;
        rows += rows_of(rank) * theirs.count;
    }
    return rows * shape.head_dim * size_of(shape.type);
}

index_t ulysses_plan::bytes() const {
    index_t out = 0;
    for (int rank = 0; rank < ranks; ++rank) out += bytes_sent_by(rank);
    return out;
}

index_t ulysses_plan::smallest_bytes() const {
    const index_t own_tokens = all_tokens() - sequence.joint_front - sequence.joint_back;
    const index_t own = all_keys() - count_rows(front_keys) - count_rows(back_keys);
    index_t rows = 0;
    for (int rank = 0; rank < ranks; ++rank) {
        const head_share& share = shares[static_cast<std::size_t>(rank)];
        rows += (own_tokens - tokens_of(rank)) * share.count;
        rows += 2 * (own - keys_of(rank)) * share.key_count;
        rows += rows_of(rank) * (shape.heads - share.count);
    }
    return rows * shape.head_dim * size_of(shape.type);
}

index_t ulysses_plan::message_bytes(int rank) const {
    index_t out = 0;
    index_t back = 0;
    for (int peer = 0; peer < ranks; ++peer) {
        if (peer == rank) continue;
        const head_share& theirs = shares[static_cast<std::size_t>(peer)];
        out += tokens_of(rank) * theirs.count + 2 * keys_of(rank) * theirs.key_count;
        back += rows_of(rank) * theirs.count;
    }
    return std::max(out, back) * shape.head_dim * size_of(shape.type);
}

index_t ulysses_plan::workspace_bytes(int rank) const {
    const head_share& share = shares[static_cast<std::size_t>(rank)];
    const index_t row = shape.head_dim * size_of(shape.type);
    const index_t keys = latpar::detail::aligned(all_keys() * share.key_count * row);
    if (ranks == 1) return is_masked() ? 2 * keys : 0;
    return 2 * latpar::detail::aligned(all_tokens() * share.count * row) + 2 * keys +
           message_bytes(rank);
}

std::string ulysses_plan::fingerprint() const {
    return "ulysses " + detail::fingerprint_of(shape, sequence, ranks);
}

}  // namespace latpar::inline v0::layer

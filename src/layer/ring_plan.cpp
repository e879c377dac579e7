// SPDX-License-Identifier: Apache-2.0
// Ring attention, planned.
#include <latpar/core/memory.hpp>
#include <latpar/layer/ring_plan.hpp>

#include <layer/check_sequence.hpp>

#include <algorithm>
#include <numeric>

namespace latpar::inline v0::layer {

using detail::count_rows;
using detail::runs_of_keys;
using detail::runs_of_own;

ring_plan plan_ring(const attention_shape& shape, token_sequence sequence, int ranks) {
    detail::check_sequence(shape, sequence, ranks);
    detail::simplify(sequence);
    ring_plan plan{shape, std::move(sequence), ranks, {}, {}, {}, {}};
    for (int rank = 0; rank < ranks; ++rank) {
        plan.own_keys.push_back(runs_of_own(plan.sequence, rank));
        plan.keys.push_back(count_rows(plan.own_keys.back()));
    }
    plan.front_keys = runs_of_keys(plan.sequence, 0, plan.sequence.joint_front);
    plan.back_keys =
        runs_of_keys(plan.sequence, detail::count_tokens(plan.sequence) - plan.sequence.joint_back,
                     plan.sequence.joint_back);
    return plan;
}

index_t ring_plan::key_rows_of(int rank) const {
    if (is_packed) return joint_front_keys() + keys_of(rank) + joint_back_keys();
    return rows_of(rank) + sequence.key_only_of(rank);
}

index_t ring_plan::joint_front_keys() const {
    return count_rows(front_keys);
}

index_t ring_plan::joint_back_keys() const {
    return count_rows(back_keys);
}

index_t ring_plan::most_keys() const {
    return *std::max_element(keys.begin(), keys.end());
}

row_range ring_plan::joint_queries(int rank) const {
    return {joint() * rank / ranks, joint() * (rank + 1) / ranks};
}

std::vector<row_range> ring_plan::query_rows(int rank) const {
    const row_range share = joint_queries(rank);
    const index_t front = sequence.joint_front;
    const index_t own_end = front + tokens_of(rank);
    std::vector<row_range> out;
    const auto add = [&](index_t begin, index_t end) {
        if (begin >= end) return;
        if (!out.empty() && out.back().end == begin) {
            out.back().end = end;
        } else {
            out.push_back({begin, end});
        }
    };
    add(share.begin, std::min(share.end, front));
    add(front, own_end);
    add(own_end + std::max(share.begin, front) - front, own_end + share.end - front);
    return out;
}

bool ring_plan::is_masked() const noexcept {
    return !is_packed && !sequence.is_key.empty();
}

bool ring_plan::may_pack(int rank) const noexcept {
    return is_masked() || (ranks > 1 && !shape.keys_are_dense && keys_of(rank) > 0);
}

index_t ring_plan::bytes_sent_by(int rank) const {
    index_t rows = 0;
    for (int step = 0; step + 1 < ranks; ++step) {
        rows += 2 * keys_of(origin_of(rank, step)) * shape.key_heads;
    }
    rows += joint_queries(rank).size() * shape.heads * (ranks - 1);
    return rows * shape.head_dim * size_of(shape.type);
}

index_t ring_plan::bytes_received_by(int rank) const {
    index_t rows = 0;
    for (int step = 1; step < ranks; ++step) {
        rows += 2 * keys_of(origin_of(rank, step)) * shape.key_heads;
    }
    rows += (joint() - joint_queries(rank).size()) * shape.heads;
    return rows * shape.head_dim * size_of(shape.type);
}

index_t ring_plan::bytes() const {
    index_t out = 0;
    for (int rank = 0; rank < ranks; ++rank) out += bytes_sent_by(rank);
    return out;
}

index_t ring_plan::smallest_bytes() const {
    const index_t all = std::accumulate(keys.begin(), keys.end(), index_t{0});
    const index_t rows =
        2 * (ranks - 1) * all * shape.key_heads + (ranks - 1) * joint() * shape.heads;
    return rows * shape.head_dim * size_of(shape.type);
}

index_t ring_plan::workspace_bytes(int rank) const {
    using latpar::detail::aligned;
    const index_t row = shape.head_dim * size_of(shape.type);
    const index_t own = keys_of(rank) + joint_front_keys() + joint_back_keys();
    index_t out = may_pack(rank) ? 2 * aligned(own * shape.key_heads * row) : 0;
    if (ranks == 1) return out;
    const index_t results = rows_of(rank) * shape.heads;
    out += 4 * aligned(most_keys() * shape.key_heads * row);
    out += aligned(results * row) + 2 * aligned(results * 4) + aligned(joint() * shape.heads * row);
    // Narrow results are merged in float32.
    if (shape.type != dtype::f32) out += aligned(results * shape.head_dim * 4);
    return out;
}

std::string ring_plan::fingerprint() const {
    std::string out = "ring " + detail::fingerprint_of(shape, sequence, ranks);
    if (!is_packed) return out;
    out += latpar::detail::concat(" packed ", joint_front_keys(), '+', joint_back_keys(), ' ');
    for (const index_t n : keys) out += latpar::detail::concat(n, ',');
    return out;
}

}  // namespace latpar::inline v0::layer

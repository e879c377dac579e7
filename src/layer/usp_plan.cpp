// SPDX-License-Identifier: Apache-2.0
// Ulysses and ring together, planned.
#include <latpar/layer/usp_plan.hpp>

#include <layer/check_sequence.hpp>

namespace latpar::inline v0::layer {
namespace {

/// The tokens of one row of ranks, joint ones included.
token_sequence sequence_of_row(const token_sequence& all, int row, int ranks) {
    token_sequence out{{all.tokens.begin() + row * ranks, all.tokens.begin() + (row + 1) * ranks},
                       all.joint_front,
                       all.joint_back,
                       {},
                       {}};
    if (!all.key_only.empty()) {
        const auto begin = all.key_only.begin();
        out.key_only.assign(begin + row * ranks, begin + (row + 1) * ranks);
    }
    if (all.is_key.empty()) return out;
    const auto begin = all.is_key.begin();
    const index_t first = detail::first_token(all, row * ranks);
    const index_t last = detail::first_token(all, (row + 1) * ranks);
    out.is_key.assign(begin, begin + all.joint_front);
    out.is_key.insert(out.is_key.end(), begin + first, begin + last);
    out.is_key.insert(out.is_key.end(), all.is_key.end() - all.joint_back, all.is_key.end());
    return out;
}

}  // namespace

usp_plan plan_usp(const attention_shape& shape, token_sequence sequence, int ulysses_ranks,
                  int ring_ranks) {
    latpar::detail::require(ulysses_ranks >= 1 && ring_ranks >= 1,
                            "a mesh of ulysses=", ulysses_ranks, ",ring=", ring_ranks,
                            " was planned; each must be 1 or more");
    detail::check_sequence(shape, sequence, ulysses_ranks * ring_ranks);
    detail::simplify(sequence);
    latpar::detail::require(ulysses_ranks <= shape.heads, shape.heads,
                            " heads cannot be spread on ", ulysses_ranks,
                            " ranks, each needs one; use a mesh such as ",
                            detail::mesh_for_heads(shape.heads, ulysses_ranks * ring_ranks));
    usp_plan plan{shape, std::move(sequence), ulysses_ranks, ring_ranks, {}, {}};
    for (int row = 0; row < ring_ranks; ++row) {
        plan.rows.push_back(
            plan_ulysses(shape, sequence_of_row(plan.sequence, row, ulysses_ranks), ulysses_ranks));
    }
    for (int place = 0; place < ulysses_ranks; ++place) {
        const head_share& share = plan.rows[0].shares[static_cast<std::size_t>(place)];
        ring_plan ring;
        // Gathered keys are dense.
        ring.shape = {share.count, share.key_count, shape.head_dim, shape.type,
                      shape.keys_are_dense || ulysses_ranks > 1};
        ring.sequence.joint_front = plan.sequence.joint_front;
        ring.sequence.joint_back = plan.sequence.joint_back;
        ring.ranks = ring_ranks;
        const index_t front = detail::count_rows(plan.rows[0].front_keys);
        const index_t back = detail::count_rows(plan.rows[0].back_keys);
        ring.front_keys = {{0, front}};
        ring.back_keys = {{0, back}};
        ring.is_packed = true;
        for (const ulysses_plan& row : plan.rows) {
            ring.sequence.tokens.push_back(row.all_tokens() - plan.sequence.joint_front -
                                           plan.sequence.joint_back);
            ring.keys.push_back(row.all_keys() - front - back);
            ring.own_keys.push_back({{0, ring.keys.back()}});
        }
        plan.rings.push_back(std::move(ring));
    }
    return plan;
}

row_range usp_plan::token_range(int rank) const {
    const index_t begin = detail::first_token(sequence, rank) - sequence.joint_front;
    return {begin, begin + sequence.tokens[static_cast<std::size_t>(rank)]};
}

index_t usp_plan::ulysses_bytes() const {
    index_t out = 0;
    for (const ulysses_plan& row : rows) out += row.bytes();
    return out;
}

index_t usp_plan::ring_bytes() const {
    index_t out = 0;
    for (const ring_plan& ring : rings) out += ring.bytes();
    return out;
}

index_t usp_plan::bytes_sent_by(int rank) const {
    return row_of(rank).bytes_sent_by(rank % ulysses_ranks) +
           ring_of(rank).bytes_sent_by(rank / ulysses_ranks);
}

index_t usp_plan::bytes_received_by(int rank) const {
    return row_of(rank).bytes_received_by(rank % ulysses_ranks) +
           ring_of(rank).bytes_received_by(rank / ulysses_ranks);
}

index_t usp_plan::smallest_bytes() const {
    index_t out = 0;
    for (const ulysses_plan& row : rows) out += row.smallest_bytes();
    for (const ring_plan& ring : rings) out += ring.smallest_bytes();
    return out;
}

index_t usp_plan::workspace_bytes(int rank) const {
    return row_of(rank).workspace_bytes(rank % ulysses_ranks) +
           ring_of(rank).workspace_bytes(rank / ulysses_ranks);
}

std::string usp_plan::fingerprint() const {
    return latpar::detail::concat("usp ulysses=", ulysses_ranks, " ring=", ring_ranks, ' ',
                                  detail::fingerprint_of(shape, sequence, ranks()));
}

}  // namespace latpar::inline v0::layer

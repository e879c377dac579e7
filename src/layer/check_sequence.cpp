// SPDX-License-Identifier: Apache-2.0
#include "check_sequence.hpp"

#include <algorithm>
#include <numeric>
#include <sstream>

namespace latpar::inline v0::layer::detail {

using latpar::detail::require;

void check_sequence(const attention_shape& shape, const token_sequence& sequence, int ranks) {
    require(ranks >= 1, "an attention was planned for ", ranks, " ranks; it needs 1 or more");
    require(shape.heads >= 1 && shape.key_heads >= 1 && shape.head_dim >= 1, "an attention of ",
            shape.heads, " heads, ", shape.key_heads, " key heads and a head dimension of ",
            shape.head_dim, " was planned; each must be 1 or more");
    require(shape.heads % shape.key_heads == 0, shape.key_heads, " key heads cannot serve ",
            shape.heads, " query heads evenly; use a divisor of ", shape.heads);
    require(shape.type == dtype::f32 || shape.type == dtype::bf16 || shape.type == dtype::f16,
            "an attention in ", name_of(shape.type), " was planned; use f32, bf16 or f16");
    require(static_cast<int>(sequence.tokens.size()) == ranks, "the tokens of ",
            sequence.tokens.size(), " ranks were given for ", ranks, " ranks; give each its own");
    for (std::size_t rank = 0; rank < sequence.tokens.size(); ++rank) {
        require(sequence.tokens[rank] >= 0, "rank ", rank, " was given ", sequence.tokens[rank],
                " tokens; give it 0 or more");
    }
    require(sequence.joint_front >= 0 && sequence.joint_back >= 0, "there are ",
            sequence.joint_front, " joint tokens in front and ", sequence.joint_back,
            " behind; use 0 or more");
    const auto entries = static_cast<index_t>(sequence.is_key.size());
    require(entries == 0 || entries == count_tokens(sequence), "a key mask of ", entries,
            " entries was given for ", count_tokens(sequence),
            " tokens; give one for each, joint tokens once, or none");
}

std::vector<row_range> runs_of_keys(const token_sequence& sequence, index_t first, index_t count) {
    std::vector<row_range> out;
    for (index_t i = 0; i < count; ++i) {
        if (!sequence.is_key.empty() && !sequence.is_key[static_cast<std::size_t>(first + i)]) {
            continue;
        }
        if (out.empty() || out.back().end != i) out.push_back({i, i});
        out.back().end = i + 1;
    }
    return out;
}

index_t first_token(const token_sequence& sequence, int rank) {
    return std::accumulate(sequence.tokens.begin(), sequence.tokens.begin() + rank,
                           sequence.joint_front);
}

index_t count_rows(const std::vector<row_range>& runs) {
    index_t out = 0;
    for (const row_range& run : runs) out += run.size();
    return out;
}

index_t count_tokens(const token_sequence& sequence) {
    return std::accumulate(sequence.tokens.begin(), sequence.tokens.end(),
                           sequence.joint_front + sequence.joint_back);
}

std::string fingerprint_of(const attention_shape& shape, const token_sequence& sequence,
                           int ranks) {
    std::ostringstream out;
    out << "heads=" << shape.heads << '/' << shape.key_heads << 'x' << shape.head_dim << ' '
        << name_of(shape.type) << " ranks=" << ranks << " joint=" << sequence.joint_front << '+'
        << sequence.joint_back << " tokens=";
    for (const index_t n : sequence.tokens) out << n << ',';
    out << " keys=";
    for (const row_range& run : runs_of_keys(sequence, 0, count_tokens(sequence))) {
        out << run.begin << '-' << run.end << ',';
    }
    return std::move(out).str();
}

}  // namespace latpar::inline v0::layer::detail

// SPDX-License-Identifier: Apache-2.0
// What the layer policies refuse, in plans and in calls.
#include "check_sequence.hpp"

#include <latpar/layer/detail/rows.hpp>

#include <algorithm>
#include <initializer_list>
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
    const auto& key_only = sequence.key_only;
    require(key_only.empty() || static_cast<int>(key_only.size()) == ranks, "the key-only rows of ",
            key_only.size(), " ranks were given for ", ranks,
            " ranks; give each its own, or none at all");
    for (std::size_t rank = 0; rank < key_only.size(); ++rank) {
        require(key_only[rank] >= 0, "rank ", rank, " was given ", key_only[rank],
                " key-only rows; give it 0 or more");
    }
}

void simplify(token_sequence& sequence) {
    const auto& mask = sequence.is_key;
    if (std::find(mask.begin(), mask.end(), false) == mask.end()) sequence.is_key.clear();
    auto& key_only = sequence.key_only;
    const auto is_some = [](index_t rows) { return rows > 0; };
    if (std::none_of(key_only.begin(), key_only.end(), is_some)) key_only.clear();
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

std::vector<row_range> runs_of_own(const token_sequence& sequence, int rank) {
    const index_t tokens = sequence.tokens[static_cast<std::size_t>(rank)];
    std::vector<row_range> out = runs_of_keys(sequence, first_token(sequence, rank), tokens);
    const index_t key_only = sequence.key_only_of(rank);
    if (key_only == 0) return out;
    if (out.empty() || out.back().end != tokens) out.push_back({tokens, tokens});
    out.back().end += key_only;
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

std::string mesh_for_heads(index_t heads, int ranks) {
    int best = 1;
    for (int degree = 1; degree <= ranks && degree <= heads; ++degree) {
        if (ranks % degree == 0) best = degree;
    }
    return latpar::detail::concat("ulysses=", best, ",ring=", ranks / best);
}

std::string fingerprint_of(const attention_shape& shape, const token_sequence& sequence,
                           int ranks) {
    std::ostringstream out;
    out << "heads=" << shape.heads << '/' << shape.key_heads << 'x' << shape.head_dim << ' '
        << name_of(shape.type) << (shape.keys_are_dense ? " dense keys" : "") << " ranks=" << ranks
        << " joint=" << sequence.joint_front << '+' << sequence.joint_back << " tokens=";
    for (const index_t n : sequence.tokens) out << n << ',';
    out << " keys=";
    for (const row_range& run : runs_of_keys(sequence, 0, count_tokens(sequence))) {
        out << run.begin << '-' << run.end << ',';
    }
    out << " key_only=";
    for (const index_t n : sequence.key_only) out << n << ',';
    return std::move(out).str();
}

void check_views(const attention_shape& shape, int rank, index_t queries, index_t keys,
                 memory_space space, const const_heads_view& q, const const_heads_view& k,
                 const const_heads_view& v, const const_heads_view& out) {
    struct argument {
        const char* name;
        const const_heads_view& view;
        index_t rows, heads;
    };
    const std::initializer_list<argument> all{{"q", q, queries, shape.heads},
                                              {"k", k, keys, shape.key_heads},
                                              {"v", v, keys, shape.key_heads},
                                              {"out", out, queries, shape.heads}};
    const bool fit = std::all_of(all.begin(), all.end(), [&](const argument& a) {
        return a.view.extents == std::array<index_t, 3>{a.rows, a.heads, shape.head_dim} &&
               a.view.type == shape.type && a.view.space == space;
    });
    if (!fit) {
        std::ostringstream text;
        for (const argument& a : all) {
            text << (a.name[0] == 'q' ? "" : ", ") << a.name << " [" << a.view.extents[0] << ", "
                 << a.view.extents[1] << ", " << a.view.extents[2] << "] in "
                 << name_of(a.view.type) << " on " << name_of(a.view.space);
        }
        throw usage_error(latpar::detail::concat(
            "rank ", rank, " planned an attention of ", queries, " queries, ", keys, " keys, ",
            shape.heads, " heads, ", shape.key_heads, " key heads and head_dim ", shape.head_dim,
            " in ", name_of(shape.type), " on ", name_of(space), " and was called with ",
            std::move(text).str(), "; plan for what is passed"));
    }
    for (const argument& a : all) {
        require(&a.view == &out || a.view.elements() == 0 || a.view.data != out.data,
                "the output of an attention is to be written over ", a.name,
                ", which is still read then; pass memory of its own for out");
    }
}

}  // namespace latpar::inline v0::layer::detail

namespace latpar::inline v0::layer {

std::vector<index_t> even_tokens(index_t total, int ranks) {
    latpar::detail::require(total >= 0 && ranks >= 1, total, " tokens cannot be spread on ", ranks,
                            " ranks; use 0 or more tokens and 1 or more ranks");
    std::vector<index_t> out;
    for (int rank = 0; rank < ranks; ++rank) {
        out.push_back(total * (rank + 1) / ranks - total * rank / ranks);
    }
    return out;
}

std::vector<index_t> tokens_within(const std::vector<index_t>& tokens, const row_range& part) {
    std::vector<index_t> out;
    index_t first = 0;
    for (const index_t count : tokens) {
        const index_t begin = std::max(first, part.begin);
        first += count;
        out.push_back(std::max<index_t>(0, std::min(first, part.end) - begin));
    }
    return out;
}

}  // namespace latpar::inline v0::layer

// SPDX-License-Identifier: Apache-2.0
// What the layer policies ask of an attention, and what they are told of one.
#pragma once

#include <latpar/core/view.hpp>

#include <vector>

namespace latpar::inline v0::layer {

/// Queries, keys or values of one sample: [tokens, heads, head_dim].
using heads_view = basic_view<std::byte, 3>;
using const_heads_view = basic_view<const std::byte, 3>;
/// The natural logs of the sums of exponentials of the scaled scores: [tokens, heads], float32. The
/// strides may be any, {1, tokens} included.
using lse_view = basic_view<std::byte, 2>;

/// A callable `attend(q, k, v, out, lse, stream)`: out = softmax(q k^T / sqrt(head_dim)) v.
///
/// For one sample, every query over every key: no causal order. The scale, 1 / sqrt(head_dim) or
/// another, is the callable's own; no policy applies one. Keys and values are [keys, key heads,
/// head_dim], as many of one as of the other, more or fewer than queries but at least one; each key
/// head serves `heads / key heads` consecutive query heads. `lse` is written if its pointer is not
/// null: `ring` needs that, to merge results over different keys; where it was not, the output of
/// `ring` is NaN.
///
/// A policy may call it several times for one layer: for parts of the queries, for parts of the
/// keys, and once for each key head where the heads of a rank cut a group.
/// Stream: the work is ordered on it. Memory: the head dimension is dense, tokens and heads may be
/// strided; out overlaps none of the others.
template <class A>
concept attention = requires(A& attend, const_heads_view q, const_heads_view k, const_heads_view v,
                             heads_view out, lse_view lse, stream_ref stream) {
    attend(q, k, v, out, lse, stream);
};

/// The heads of an attention.
struct attention_shape {
    index_t heads = 1;      ///< of queries
    index_t key_heads = 1;  ///< of keys and values; divides `heads`
    index_t head_dim = 64;
    dtype type = dtype::f32;
    /// The caller's promise that k and v are dense, [tokens, key heads, head_dim] without gaps:
    /// where keys travel as they lie it saves the memory to pack them.
    bool keys_are_dense = false;

    friend bool operator==(const attention_shape&, const attention_shape&) = default;
};

/// Which rank has which tokens of an attention.
///
/// A rank passes q, k and v with a row for each joint token in front, each token of its own, and
/// each joint token behind. Joint tokens (the text of MM-DiT models) are the same on every rank and
/// count once; every rank gets their output. Ranks follow each other in the sequence.
///
/// Keys and values that no query goes with (features kept from another window, say) may follow a
/// rank's own tokens: its k and v are [joint in front, own, key-only, joint behind]. On one rank
/// that is the order of all keys: the key-only rows of rank 0, of rank 1, ... behind all tokens.
struct token_sequence {
    std::vector<index_t> tokens;  ///< own tokens of each rank, none included
    index_t joint_front = 0;
    index_t joint_back = 0;
    /// Whether a token is a key, for padding that is none: one entry for each token, in the order
    /// joint in front, those of rank 0, of rank 1, ..., joint behind. Empty: all are.
    std::vector<bool> is_key{};
    /// Rows of each rank that are in k and v alone, always keys. Empty: none.
    std::vector<index_t> key_only{};

    [[nodiscard]] index_t key_only_of(int rank) const {
        return key_only.empty() ? 0 : key_only[static_cast<std::size_t>(rank)];
    }
    friend bool operator==(const token_sequence&, const token_sequence&) = default;
};

/// Rows [begin, end) of a tensor.
struct row_range {
    index_t begin = 0;
    index_t end = 0;

    [[nodiscard]] constexpr index_t size() const noexcept { return end - begin; }
    friend bool operator==(const row_range&, const row_range&) = default;
};

/// `total` tokens on `ranks` ranks, in order and as evenly as can be.
[[nodiscard]] std::vector<index_t> even_tokens(index_t total, int ranks);

/// How many of the rows `part` each rank has, if the ranks have `tokens` rows one behind the other.
[[nodiscard]] std::vector<index_t> tokens_within(const std::vector<index_t>& tokens,
                                                 const row_range& part);

}  // namespace latpar::inline v0::layer

// SPDX-License-Identifier: Apache-2.0
// Ring attention, planned: whose keys are where at which step, and what travels.
#pragma once

#include <latpar/layer/attention.hpp>

#include <string>
#include <vector>

namespace latpar::inline v0::layer {

/// One attention layer on the ranks of a communicator. Immutable.
///
/// In step s rank r attends over the keys of rank (r - s) mod n, in step 0 over the joint ones too.
/// The queries of joint tokens are shared out, in order and as evenly as can be.
struct ring_plan {
    attention_shape shape;
    token_sequence sequence;
    int ranks = 1;
    std::vector<index_t> keys;  ///< own keys of each rank, key-only rows included
    /// Of each rank: its tokens that are keys and its key-only rows, counted from its first token.
    std::vector<std::vector<row_range>> own_keys;
    std::vector<row_range> front_keys;  ///< joint tokens that are keys
    std::vector<row_range> back_keys;
    /// Whether keys and values arrive without the tokens that are none, as `usp` passes them on.
    bool is_packed = false;

    [[nodiscard]] index_t joint() const noexcept {
        return sequence.joint_front + sequence.joint_back;
    }
    [[nodiscard]] index_t tokens_of(int rank) const {
        return sequence.tokens[static_cast<std::size_t>(rank)];
    }
    /// Rows of q on a rank, and of k and v.
    [[nodiscard]] index_t rows_of(int rank) const { return tokens_of(rank) + joint(); }
    [[nodiscard]] index_t key_rows_of(int rank) const;
    [[nodiscard]] index_t keys_of(int rank) const { return keys[static_cast<std::size_t>(rank)]; }
    [[nodiscard]] index_t joint_front_keys() const;
    [[nodiscard]] index_t joint_back_keys() const;
    [[nodiscard]] index_t most_keys() const;
    /// The rank whose keys a rank attends over in a step.
    [[nodiscard]] int origin_of(int rank, int step) const noexcept {
        return (rank - step + ranks) % ranks;
    }
    /// The joint tokens, counted over front and back, whose queries a rank attends for.
    [[nodiscard]] row_range joint_queries(int rank) const;
    /// The rows of q that a rank attends for: its own tokens and its share of the joint ones.
    [[nodiscard]] std::vector<row_range> query_rows(int rank) const;
    /// Whether tokens that are no keys are among those that are passed.
    [[nodiscard]] bool is_masked() const noexcept;
    /// Whether memory is kept to pack the keys of a rank: without those that are none, or dense for
    /// the neighbour.
    [[nodiscard]] bool may_pack(int rank) const noexcept;

    /// Payload bytes of one attention.
    [[nodiscard]] index_t bytes() const;
    [[nodiscard]] index_t bytes_sent_by(int rank) const;
    [[nodiscard]] index_t bytes_received_by(int rank) const;
    /// The fewest bytes with which these queries can be attended for where they are: every rank
    /// needs the keys and values of all others, and the output of the joint tokens.
    [[nodiscard]] index_t smallest_bytes() const;
    /// What the policy takes on a rank, the memory to pack keys included unless they are promised
    /// to be dense.
    [[nodiscard]] index_t workspace_bytes(int rank) const;

    /// One line that is equal exactly if the plans are.
    [[nodiscard]] std::string fingerprint() const;
};

/// Plans ring attention for `ranks` ranks.
///
/// Errors: usage_error, naming value and remedy, for key heads that do not divide the heads, tokens
/// or key-only rows of another number of ranks, or a key mask of another length.
/// Source: Ring Attention (arXiv 2310.01889).
[[nodiscard]] ring_plan plan_ring(const attention_shape& shape, token_sequence sequence, int ranks);

}  // namespace latpar::inline v0::layer

// SPDX-License-Identifier: Apache-2.0
// Ulysses-style sequence parallelism, planned: who attends for which heads, and what travels.
#pragma once

#include <latpar/layer/attention.hpp>

#include <string>
#include <vector>

namespace latpar::inline v0::layer {

/// The heads that a rank attends for.
struct head_share {
    index_t first = 0;  ///< query heads [first, first + count)
    index_t count = 0;
    index_t first_key = 0;  ///< the key heads that serve them; neighbours may share one
    index_t key_count = 0;

    friend bool operator==(const head_share&, const head_share&) = default;
};

/// One attention layer on the ranks of a communicator. Immutable.
struct ulysses_plan {
    attention_shape shape;
    token_sequence sequence;
    int ranks = 1;
    std::vector<head_share> shares;                ///< of each rank
    std::vector<std::vector<row_range>> own_keys;  ///< of each rank: its tokens that are keys
    std::vector<row_range> front_keys;             ///< joint tokens that are keys
    std::vector<row_range> back_keys;

    /// Rows of q on a rank, its own tokens and the joint ones, and of k and v.
    [[nodiscard]] index_t rows_of(int rank) const;
    [[nodiscard]] index_t key_rows_of(int rank) const;
    /// Own tokens of a rank; its own keys, those among them that are keys and its key-only rows.
    [[nodiscard]] index_t tokens_of(int rank) const;
    [[nodiscard]] index_t keys_of(int rank) const;
    /// Tokens and keys of all ranks, joint ones counted once.
    [[nodiscard]] index_t all_tokens() const;
    [[nodiscard]] index_t all_keys() const;
    /// Whether some tokens are no keys.
    [[nodiscard]] bool is_masked() const noexcept;

    /// Payload bytes of one attention.
    [[nodiscard]] index_t bytes() const;
    [[nodiscard]] index_t bytes_sent_by(int rank) const;
    [[nodiscard]] index_t bytes_received_by(int rank) const;
    /// The fewest bytes with which these heads can be attended for on these ranks: each needs the
    /// queries, keys and values of the others' tokens, and each token the output of all heads.
    [[nodiscard]] index_t smallest_bytes() const;
    /// What the policy takes on a rank, messages included.
    [[nodiscard]] index_t workspace_bytes(int rank) const;
    /// What packed heads take for the message that leaves, and the one that comes back.
    [[nodiscard]] index_t message_bytes(int rank) const;

    /// One line that is equal exactly if the plans are.
    [[nodiscard]] std::string fingerprint() const;
};

/// Plans Ulysses for `ranks` ranks: each attends for some heads over all tokens, as many heads as
/// can be even.
///
/// Errors: usage_error, naming value and remedy, for more ranks than heads (it names a mesh with a
/// ring that serves), key heads that do not divide the heads, tokens or key-only rows of another
/// number of ranks, or a key mask of another length.
/// Source: DeepSpeed-Ulysses (arXiv 2309.14509); uneven heads and tokens, joint tokens and masks
/// are latpar's.
[[nodiscard]] ulysses_plan plan_ulysses(const attention_shape& shape, token_sequence sequence,
                                        int ranks);

}  // namespace latpar::inline v0::layer

// SPDX-License-Identifier: Apache-2.0
// What the plans of all layer policies refuse, and how they read a key mask.
#pragma once

#include <latpar/layer/attention.hpp>

#include <string>

namespace latpar::inline v0::layer::detail {

/// Errors: usage_error unless the heads fit and there are tokens for `ranks` ranks.
void check_sequence(const attention_shape& shape, const token_sequence& sequence, int ranks);

/// A mask without any token that is no key becomes none, and so do key-only rows of no rank.
void simplify(token_sequence& sequence);

/// The runs of keys among the tokens [first, first + count) of the sequence, counted from `first`.
[[nodiscard]] std::vector<row_range> runs_of_keys(const token_sequence& sequence, index_t first,
                                                  index_t count);

/// Where the own tokens of a rank begin in the sequence.
[[nodiscard]] index_t first_token(const token_sequence& sequence, int rank);

/// What a rank has for others to attend over, counted from its first own token: its tokens that
/// are keys, then its key-only rows.
[[nodiscard]] std::vector<row_range> runs_of_own(const token_sequence& sequence, int rank);

[[nodiscard]] index_t count_rows(const std::vector<row_range>& runs);
[[nodiscard]] index_t count_tokens(const token_sequence& sequence);

/// A mesh for as many ranks whose Ulysses part has heads for all.
[[nodiscard]] std::string mesh_for_heads(index_t heads, int ranks);

[[nodiscard]] std::string fingerprint_of(const attention_shape& shape,
                                         const token_sequence& sequence, int ranks);

}  // namespace latpar::inline v0::layer::detail

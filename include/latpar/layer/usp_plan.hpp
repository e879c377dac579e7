// SPDX-License-Identifier: Apache-2.0
// Ulysses and ring together, planned.
#pragma once

#include <latpar/layer/ring_plan.hpp>
#include <latpar/layer/ulysses_plan.hpp>

#include <string>
#include <vector>

namespace latpar::inline v0::layer {

/// One attention layer on a mesh of `ring_ranks` rows of `ulysses_ranks` ranks each; rank u of row
/// r is number r * ulysses_ranks + u in the token sequence. Immutable.
///
/// Each row of ranks does Ulysses; then those with the same heads, one in each row, are a ring.
struct usp_plan {
    attention_shape shape;
    token_sequence sequence;
    int ulysses_ranks = 1;
    int ring_ranks = 1;
    std::vector<ulysses_plan> rows;  ///< of each place along the ring
    std::vector<ring_plan> rings;    ///< of each place along Ulysses

    [[nodiscard]] int ranks() const noexcept { return ulysses_ranks * ring_ranks; }
    [[nodiscard]] const ulysses_plan& row_of(int rank) const {
        return rows[static_cast<std::size_t>(rank / ulysses_ranks)];
    }
    [[nodiscard]] const ring_plan& ring_of(int rank) const {
        return rings[static_cast<std::size_t>(rank % ulysses_ranks)];
    }
    [[nodiscard]] int rank_of(int ulysses_rank, int ring_rank) const noexcept {
        return ring_rank * ulysses_ranks + ulysses_rank;
    }
    /// A rank's own tokens, counted over those of all ranks without the joint ones.
    [[nodiscard]] row_range token_range(int rank) const;

    /// Payload bytes of one attention: of Ulysses, of the rings, and of both.
    [[nodiscard]] index_t ulysses_bytes() const;
    [[nodiscard]] index_t ring_bytes() const;
    [[nodiscard]] index_t bytes() const { return ulysses_bytes() + ring_bytes(); }
    [[nodiscard]] index_t bytes_sent_by(int rank) const;
    [[nodiscard]] index_t bytes_received_by(int rank) const;
    [[nodiscard]] index_t smallest_bytes() const;
    /// What the policy takes on a rank.
    [[nodiscard]] index_t workspace_bytes(int rank) const;

    /// One line that is equal exactly if the plans are.
    [[nodiscard]] std::string fingerprint() const;
};

/// Plans Ulysses inside rows and rings across them.
///
/// Errors: usage_error as those of plan_ulysses and plan_ring; for more Ulysses ranks than heads it
/// names a mesh for all ranks that serves.
/// Source: USP (arXiv 2405.07719).
[[nodiscard]] usp_plan plan_usp(const attention_shape& shape, token_sequence sequence,
                                int ulysses_ranks, int ring_ranks);

}  // namespace latpar::inline v0::layer

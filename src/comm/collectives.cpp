// SPDX-License-Identifier: Apache-2.0
// The argument checks of the collectives.
#include <latpar/comm/collectives.hpp>

#include <numeric>

namespace latpar::inline v0::detail {

void require_counts(std::string_view what, std::span<const index_t> counts, int ranks,
                    index_t elements) {
    require(counts.size() == static_cast<std::size_t>(ranks), what, " was given ", counts.size(),
            " counts for ", ranks, " ranks; give one for each rank");
    for (std::size_t rank = 0; rank < counts.size(); ++rank) {
        require(counts[rank] >= 0, what, " was given a count of ", counts[rank], " for rank ", rank,
                "; a count is zero or more");
    }
    require_elements(what, elements, std::accumulate(counts.begin(), counts.end(), index_t{0}));
}

void require_root(int root, int ranks) {
    require(root >= 0 && root < ranks, "rank ", root, " cannot be the root of ", ranks,
            " ranks; the last is ", ranks - 1);
}

void require_elements(std::string_view what, index_t given, index_t needed) {
    require(given == needed, what, " was given a buffer of ", given,
            " elements where the counts ask for ", needed);
}

void require_type(dtype sent, dtype received) {
    require(sent == received, "a collective was asked to turn ", name_of(sent), " into ",
            name_of(received), "; use one type, or convert first");
}

std::vector<index_t> equal_counts(index_t count, int ranks) {
    return std::vector<index_t>(static_cast<std::size_t>(ranks), count);
}

std::vector<index_t> shares_of(index_t total, int ranks) {
    std::vector<index_t> shares;
    for (index_t r = 0; r < ranks; ++r) {
        shares.push_back((r + 1) * total / ranks - r * total / ranks);
    }
    return shares;
}

}  // namespace latpar::inline v0::detail

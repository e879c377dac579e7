// SPDX-License-Identifier: Apache-2.0
// Who joins which part of a split: what the ranks say of it on the control channel.
#pragma once

#include <latpar/comm/communicator.hpp>

#include <algorithm>
#include <locale>
#include <sstream>
#include <utility>

namespace latpar::inline v0::detail {

/// What a rank says of its part in a split.
[[nodiscard]] inline std::string split_text(int color, int key) {
    return concat(color, ' ', key);
}

/// The ranks of one color by (key, rank), from the `split_text` of every rank.
///
/// Errors: usage_error, alike on every rank, if any has a negative color other than no_color.
[[nodiscard]] inline std::vector<int> split_members(std::span<const std::string> texts, int color) {
    std::vector<std::pair<int, int>> members;
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
        std::istringstream in(texts[rank]);
        in.imbue(std::locale::classic());
        int its_color = 0;
        int its_key = 0;
        in >> its_color >> its_key;
        require(its_color >= no_color, "rank ", rank, " splits with color ", its_color,
                "; a color is zero or more, or no_color (-1) to stay out");
        if (its_color == color) members.emplace_back(its_key, static_cast<int>(rank));
    }
    std::sort(members.begin(), members.end());
    std::vector<int> ranks;
    for (const auto& member : members) ranks.push_back(member.second);
    return ranks;
}

}  // namespace latpar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
// The texts of disagreement.
#include <latpar/comm/agreement.hpp>

#include <algorithm>

namespace latpar::inline v0::detail {
namespace {

/// "rank 1", "ranks 0 to 3" or "ranks 0, 2".
std::string name_ranks(const std::vector<std::size_t>& ranks) {
    if (ranks.size() == 1) return concat("rank ", ranks[0]);
    if (ranks.size() > 2 && ranks.back() - ranks.front() == ranks.size() - 1) {
        return concat("ranks ", ranks.front(), " to ", ranks.back());
    }
    std::string out = "ranks ";
    for (const std::size_t rank : ranks) out += concat(rank == ranks[0] ? "" : ", ", rank);
    return out;
}

/// "ranks 0 to 2: x; rank 3: y", in the order of first appearance, empty texts left out.
std::string list(const std::vector<std::string>& texts) {
    std::string out;
    for (std::size_t first = 0; first < texts.size(); ++first) {
        std::vector<std::size_t> ranks;
        for (std::size_t rank = 0; rank < texts.size(); ++rank) {
            if (texts[rank] == texts[first]) ranks.push_back(rank);
        }
        if (ranks[0] != first || texts[first].empty()) continue;
        out += concat(out.empty() ? "" : "; ", name_ranks(ranks), ": ", texts[first]);
    }
    return out;
}

}  // namespace

void require_equal(std::string_view what, const std::vector<std::string>& texts) {
    const bool equal =
        std::all_of(texts.begin(), texts.end(), [&](const auto& text) { return text == texts[0]; });
    if (equal) return;
    // What all have in common is said once, in front.
    const std::string prefix = concat(what, ": ");
    const bool common = std::all_of(texts.begin(), texts.end(),
                                    [&](const auto& text) { return text.starts_with(prefix); });
    std::vector<std::string> values;
    for (const std::string& text : texts) {
        const std::string value = common ? text.substr(prefix.size()) : text;
        values.push_back(value.empty() ? "(empty)" : value);
    }
    throw usage_error(concat("the ranks disagree on ", common ? what : "what they do", ": ",
                             list(values), "; every rank must pass the same"));
}

void require_no_error(const std::vector<std::string>& texts) {
    std::vector<std::string> messages;
    for (const std::string& text : texts) {
        messages.push_back(text.empty() ? "" : text.size() > 1 ? text.substr(1) : "(no message)");
    }
    const std::string all = list(messages);
    if (!all.empty()) throw usage_error(all);
}

}  // namespace latpar::inline v0::detail

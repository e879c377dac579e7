// SPDX-License-Identifier: Apache-2.0
// Which box goes from which rank to which, and how many bytes that is.
#include <latpar/comm/transfer_plan.hpp>
#include <latpar/core/memory.hpp>

#include <algorithm>
#include <cstddef>

namespace latpar::inline v0 {

index_t transfer_phase::bytes() const noexcept {
    index_t out = 0;
    for (const transfer& t : transfers) out += t.from == t.to ? 0 : bytes_of(t);
    return out;
}

index_t transfer_phase::bytes_sent_by(int rank) const noexcept {
    index_t out = 0;
    for (const transfer& t : transfers) out += t.from == rank && t.to != rank ? bytes_of(t) : 0;
    return out;
}

index_t transfer_phase::bytes_received_by(int rank) const noexcept {
    index_t out = 0;
    for (const transfer& t : transfers) out += t.to == rank && t.from != rank ? bytes_of(t) : 0;
    return out;
}

index_t transfer_phase::buffer_bytes(int rank) const noexcept {
    index_t out = 0;
    const box* packed = nullptr;
    for (const transfer& t : transfers) {
        if (t.to == rank) out += detail::aligned(bytes_of(t));
        if (t.from == rank && !(packed && *packed == t.region)) {
            out += detail::aligned(bytes_of(t));
            packed = &t.region;
        }
    }
    return out;
}

std::vector<box> subtract(const box& whole, const box& hole) {
    if (whole.empty()) return {};
    const box common = intersect(whole, hole);
    if (common.empty()) return {whole};
    std::vector<box> out;
    box rest = whole;
    for (const axis a : all_axes) {
        const box before = slab(rest, a, rest.begin(a), common.begin(a));
        const box after = slab(rest, a, common.end(a), rest.end(a));
        if (!before.empty()) out.push_back(before);
        if (!after.empty()) out.push_back(after);
        rest = slab(rest, a, common.begin(a), common.end(a));
    }
    return out;
}

std::vector<transfer> plan_relayout(std::span<const box> held, std::span<const box> wanted) {
    detail::require(held.size() == wanted.size(), "a relayout from ", held.size(), " to ",
                    wanted.size(), " ranks was asked for; both need the same number");
    std::vector<transfer> out;
    const std::size_t ranks = held.size();
    std::vector<std::size_t> holders;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
        if (!held[rank].empty()) holders.push_back(rank);
    }
    for (std::size_t to = 0; to < ranks; ++to) {
        std::vector<box> missing = subtract(wanted[to], held[to]);
        const auto above = static_cast<std::size_t>(
            std::upper_bound(holders.begin(), holders.end(), to) - holders.begin());
        for (std::size_t step = 0; step < holders.size() && !missing.empty(); ++step) {
            const std::size_t from = holders[(above + step) % holders.size()];
            std::vector<box> rest;
            for (const box& piece : missing) {
                const box common = intersect(piece, held[from]);
                if (!common.empty()) {
                    out.push_back({static_cast<int>(from), static_cast<int>(to), common});
                }
                for (const box& left : subtract(piece, held[from])) rest.push_back(left);
            }
            missing = std::move(rest);
        }
        detail::require(missing.empty(), "rank ", to, " needs ",
                        missing.empty() ? box{} : missing.front(), ", which no rank holds");
    }
    return out;
}

}  // namespace latpar::inline v0

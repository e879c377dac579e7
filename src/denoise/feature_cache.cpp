// SPDX-License-Identifier: Apache-2.0
// What a feature cache takes, and what it refuses.
#include <latpar/denoise/feature_cache.hpp>

#include <ostream>

namespace latpar::inline v0 {
namespace {

// Put together only when a check fails.
struct names {
    const std::vector<guidance_branch>& branches;
    friend std::ostream& operator<<(std::ostream& out, names n) {
        if (n.branches.empty()) return out << "no branch";
        for (std::size_t k = 0; k < n.branches.size(); ++k) {
            out << (k ? ", " : "") << name_of(n.branches[k]);
        }
        return out;
    }
};

}  // namespace

index_t feature_cache_plan::entries() const noexcept {
    return (last_layer - first_layer) * static_cast<index_t>(branches.size());
}

index_t feature_cache_plan::half_entry_bytes() const noexcept {
    return detail::aligned(tokens * width * size_of(type));
}

index_t feature_cache_plan::bytes() const noexcept {
    return entries() * 2 * half_entry_bytes();
}

std::string feature_cache_plan::fingerprint() const {
    return detail::concat("layers=", first_layer, '-', last_layer, " branches=", names{branches},
                          " tokens=", tokens, " width=", width, ' ', name_of(type));
}

namespace detail {

void check_feature_cache(const feature_cache_plan& plan, memory_space kernels,
                         memory_space source) {
    require(plan.first_layer >= 0 && plan.first_layer <= plan.last_layer,
            "a feature cache of layers [", plan.first_layer, ", ", plan.last_layer,
            ") was planned; plan it for those of a stage");
    for (const guidance_branch branch : plan.branches) {
        require(std::ranges::count(plan.branches, branch) == 1,
                "a feature cache was planned for the branches ", names{plan.branches},
                "; name each once");
    }
    require(plan.tokens >= 0 && plan.width >= 1, "a feature cache of ", plan.tokens,
            " tokens and rows of ", plan.width,
            " elements was planned; use no fewer than 0 tokens and 1 element");
    require(plan.type == dtype::f32 || plan.type == dtype::bf16 || plan.type == dtype::f16,
            "a feature cache of ", name_of(plan.type), " was planned; use f32, bf16 or f16");
    const double bytes = 16.0 * static_cast<double>(plan.last_layer - plan.first_layer) *
                         static_cast<double>(plan.branches.size()) *
                         static_cast<double>(plan.tokens) * static_cast<double>(plan.width);
    require(bytes < 9e18, "a feature cache of ", plan.entries(), " entries of ", plan.tokens,
            " tokens and rows of ", plan.width, " elements has more bytes than can be counted");
    require(source == kernels, "the memory source is ", name_of(source),
            " memory, the kernels work on ", name_of(kernels), "; pass a source for theirs");
}

index_t feature_entry(const feature_cache_plan& plan, const feature_key& at) {
    require(plan.first_layer <= at.layer && at.layer < plan.last_layer, "layer ", at.layer,
            " has no entry in a feature cache of layers [", plan.first_layer, ", ", plan.last_layer,
            "); plan it for the layers that are run");
    const auto found = std::ranges::find(plan.branches, at.branch);
    require(found != plan.branches.end(), "the ", name_of(at.branch),
            " branch has no entry in a feature cache of ", names{plan.branches},
            "; plan it for the branches of the guidance rule");
    return (at.layer - plan.first_layer) * static_cast<index_t>(plan.branches.size()) +
           (found - plan.branches.begin());
}

void check_feature_rows(const feature_cache_plan& plan, const feature_rows& rows) {
    require(0 <= rows.first && rows.first <= rows.last && rows.last <= volume_of(rows.grid),
            "rows [", rows.first, ", ", rows.last, ") were to be cached of a grid of ",
            rows.grid[0], 'x', rows.grid[1], 'x', rows.grid[2], " tokens; pass a part of its ",
            volume_of(rows.grid));
    require(rows.origin >= 0 && (rows.window_tokens == 0 ||
                                 rows.origin + volume_of(rows.grid) <= rows.window_tokens),
            "a grid of ", volume_of(rows.grid), " tokens from ", rows.origin,
            " on does not lie in a window of ", rows.window_tokens,
            " tokens; pass the window that it is of");
    require(rows.count() <= plan.tokens, "an entry of ", rows.count(),
            " rows was begun in a feature cache of ", plan.tokens,
            " tokens; plan it for all that are kept");
}

void check_features(const feature_cache_plan& plan, const feature_rows& rows, index_t row,
                    const const_feature_view& keys, const const_feature_view& values) {
    require(keys.extents[1] == plan.width && values.extents == keys.extents, "keys of [",
            keys.extents[0], ", ", keys.extents[1], "] and values of [", values.extents[0], ", ",
            values.extents[1], "] came to a feature cache of rows of ", plan.width,
            " elements; pass as many of both, of that width");
    require(rows.first <= row && row + keys.extents[0] <= rows.last, "rows [", row, ", ",
            row + keys.extents[0], ") are not among the rows [", rows.first, ", ", rows.last,
            ") of the entry; begin it with all that are to come");
}

}  // namespace detail
}  // namespace latpar::inline v0

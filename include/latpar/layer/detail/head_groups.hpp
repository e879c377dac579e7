// SPDX-License-Identifier: Apache-2.0
// Attention for heads that were cut out of a model's without regard to its groups.
#pragma once

#include <latpar/layer/detail/rows.hpp>

#include <algorithm>
#include <utility>

namespace latpar::inline v0::layer::detail {

/// Calls an attention for query heads [first, first + heads) of a model in which `group` query
/// heads share a key head: once if the groups are whole, else once for each key head.
template <attention Attend>
class head_groups {
public:
    static constexpr bool is_collective = false;

    explicit head_groups(Attend attend) : attend_(std::move(attend)) {}

    void set(index_t first, index_t group) noexcept {
        offset_ = first % group;
        group_ = group;
    }
    [[nodiscard]] Attend& attend() noexcept { return attend_; }

    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse, stream_ref stream) {
        const index_t heads = q.extents[1];
        if (offset_ == 0 && heads == group_ * k.extents[1]) {
            attend_(q, k, v, out, lse, stream);
            return;
        }
        for (index_t key = 0; key < k.extents[1]; ++key) {
            const index_t begin = std::max<index_t>(0, key * group_ - offset_);
            const index_t count = std::min(heads, (key + 1) * group_ - offset_) - begin;
            lse_view logs = lse;
            if (logs.data != nullptr) {
                logs.data += begin * logs.strides[1] * size_of(logs.type);
                logs.extents[1] = count;
            }
            attend_(part_of(q, 0, q.extents[0], begin, count), part_of(k, 0, k.extents[0], key, 1),
                    part_of(v, 0, v.extents[0], key, 1),
                    part_of(out, 0, out.extents[0], begin, count), logs, stream);
        }
    }

private:
    Attend attend_;
    index_t offset_ = 0;
    index_t group_ = 1;
};

}  // namespace latpar::inline v0::layer::detail

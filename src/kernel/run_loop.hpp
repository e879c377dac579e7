// SPDX-License-Identifier: Apache-2.0
// A loop over several views of the same extents in runs that are as long as their strides allow.
#pragma once

#include <latpar/core/view.hpp>

#include <algorithm>
#include <cstdlib>

namespace latpar::inline v0::kernel::detail {

/// Visits every position of up to `MaxOperands` views once, in runs of constant stride.
///
/// The order follows the memory of operand 0, so it is for work without order among positions.
template <std::size_t MaxOperands>
class run_loop {
public:
    /// One number for each operand.
    using numbers = std::array<index_t, MaxOperands>;

    explicit run_loop(const std::array<index_t, 5>& extents) : all_(extents) {}

    /// Adds an operand of the loop's extents.
    void add(const std::array<index_t, 5>& strides) {
        for (std::size_t d = 0; d < 5; ++d) strides_[d][operands_] = strides[d];
        ++operands_;
    }

    /// Calls f(offsets, count, strides) for each run: element offsets of its first position, its
    /// length, and the steps from one position to the next.
    template <class F>
    void operator()(F&& f) {
        for (const index_t extent : all_) {
            if (extent == 0) return;
        }
        merge();
        numbers offsets{};
        std::array<index_t, 5> at{};
        for (;;) {
            f(offsets, extents_[0], steps_[0]);
            std::size_t d = 1;
            for (; d < depth_; ++d) {
                for (std::size_t k = 0; k < operands_; ++k) offsets[k] += steps_[d][k];
                if (++at[d] < extents_[d]) break;
                for (std::size_t k = 0; k < operands_; ++k) {
                    offsets[k] -= steps_[d][k] * extents_[d];
                }
                at[d] = 0;
            }
            if (d >= depth_) return;
        }
    }

private:
    /// Sorts the axes by their stride in operand 0, innermost first, and joins neighbours that are
    /// one longer axis for every operand.
    void merge() {
        std::array<std::size_t, 5> order{4, 3, 2, 1, 0};
        std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
            const index_t stride_a = std::abs(strides_[a][0]);
            const index_t stride_b = std::abs(strides_[b][0]);
            return stride_a != stride_b ? stride_a < stride_b : a > b;
        });
        depth_ = 0;
        for (const std::size_t d : order) {
            if (all_[d] == 1) continue;
            if (depth_ > 0 && continues(strides_[d])) {
                extents_[depth_ - 1] *= all_[d];
                continue;
            }
            extents_[depth_] = all_[d];
            steps_[depth_] = strides_[d];
            ++depth_;
        }
        if (depth_ == 0) depth_ = 1;
    }

    [[nodiscard]] bool continues(const numbers& strides) const {
        for (std::size_t k = 0; k < operands_; ++k) {
            if (strides[k] != steps_[depth_ - 1][k] * extents_[depth_ - 1]) return false;
        }
        return true;
    }

    std::array<index_t, 5> all_;
    std::array<numbers, 5> strides_{};
    std::size_t operands_ = 0;

    std::size_t depth_ = 0;
    std::array<index_t, 5> extents_{1, 1, 1, 1, 1};
    std::array<numbers, 5> steps_{};
};

}  // namespace latpar::inline v0::kernel::detail

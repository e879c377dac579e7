// SPDX-License-Identifier: Apache-2.0
// The plans of a layer policy that its ranks have agreed on.
#pragma once

#include <latpar/core/error.hpp>

#include <deque>
#include <string>
#include <utility>

namespace latpar::inline v0::layer::detail {

/// Plans by number. A plan that was added stays where it is.
template <class Plan>
class agreed_plans {
public:
    /// The number of a plan from now on; that of an equal one if there is one.
    int add(Plan plan, std::string fingerprint) {
        for (std::size_t id = 0; id < entries_.size(); ++id) {
            if (entries_[id].first == fingerprint) return static_cast<int>(id);
        }
        entries_.emplace_back(std::move(fingerprint), std::move(plan));
        return static_cast<int>(entries_.size()) - 1;
    }
    /// Errors: usage_error for a number that was not given out.
    [[nodiscard]] const Plan& at(int id) const {
        latpar::detail::require(id >= 0 && id < static_cast<int>(entries_.size()), "plan ", id,
                                " was asked for, there are ", entries_.size(),
                                "; use a number that add returned");
        return entries_[static_cast<std::size_t>(id)].second;
    }

private:
    std::deque<std::pair<std::string, Plan>> entries_;
};

}  // namespace latpar::inline v0::layer::detail

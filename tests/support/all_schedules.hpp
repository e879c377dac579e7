// SPDX-License-Identifier: Apache-2.0
// Every sampler, and one that draws noise.
#pragma once

#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>

#include <string_view>
#include <vector>

/// All named schedules, and DDIM with as much fresh noise as ancestral sampling.
inline std::vector<latpar::linear_scheduler> all_schedules(latpar::index_t steps) {
    std::vector<latpar::linear_scheduler> out;
    for (const std::string_view name : latpar::schedule::names) {
        out.push_back(latpar::schedule::by_name(name, steps));
    }
    auto options = latpar::schedule::ddim_options::epsilon(steps);
    options.eta = 1;
    out.push_back(latpar::schedule::ddim(options));
    return out;
}

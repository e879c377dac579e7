// SPDX-License-Identifier: Apache-2.0
// What the parts of LatentParallel's plan share.
#pragma once

#include <latpar/step/latent_parallel_plan.hpp>

#include <vector>

namespace latpar::inline v0::detail {

/// `box_of_rank(rank)` for every rank.
template <class F>
std::vector<box> boxes_of_ranks(int ranks, F&& box_of_rank) {
    std::vector<box> out;
    for (int rank = 0; rank < ranks; ++rank) out.push_back(box_of_rank(rank));
    return out;
}

/// The phases that happen in a step, in the order of execution.
inline std::vector<const transfer_phase*> phases_of_kind(const latent_parallel_step& step) {
    std::vector<const transfer_phase*> out{&step.scatter, &step.predictions, &step.spread,
                                           &step.move_state};
    for (const transfer_phase& phase : step.move_history) out.push_back(&phase);
    std::erase_if(out, [](const transfer_phase* phase) { return phase->transfers.empty(); });
    return out;
}

}  // namespace latpar::inline v0::detail

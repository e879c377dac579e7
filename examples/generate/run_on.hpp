// SPDX-License-Identifier: Apache-2.0
// One rank's share of a job, at a place to compute.
#pragma once

#include <generate/clip.hpp>
#include <generate/long_video.hpp>
#include <generate/run.hpp>

namespace generate {

/// As run_rank, where `Place` says.
///
/// Ranks: all of `world`, with one answer.
template <class Place>
[[nodiscard]] ending run_on(latpar::any_communicator& world, const job& j,
                            const surroundings& around, report& figures) {
    Place here(world, j, around);
    return latpar::guarded(here, [&] {
        return is_long_video(j.options) ? make_long_video(here, world, j, around, figures)
                                        : make_clip(here, world, j, around, figures);
    });
}

}  // namespace generate

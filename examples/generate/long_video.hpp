// SPDX-License-Identifier: Apache-2.0
// One rank's share of a long video.
#pragma once

#include <generate/run.hpp>

namespace generate {

/// Samples a long video with DualParal, and writes it while it comes.
///
/// A stop ends it after the iteration that is under way and one more; the outputs then hold what
/// was delivered, and `--save-state` what it takes to go on.
/// Ranks: All of `world`, with one answer.
/// Memory: does not grow with the length, unless it is compared.
[[nodiscard]] ending make_long_video(latpar::any_communicator& world, const job& j,
                                     const surroundings& around, report& figures);

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// One rank's share of a job.
#pragma once

#include <latpar/comm/any_communicator.hpp>

#include <generate/job.hpp>
#include <generate/report.hpp>

#include <functional>
#include <string>

namespace generate {

/// How ranks are made, and whether the user wants them to stop.
struct surroundings {
    std::string backend;
    int ranks_on_host = 1;
    std::function<bool()> stop_requested;
};

/// How a job ended.
enum class ending {
    complete,  ///< as it was asked for: a video without an end is when it is stopped
    stopped,   ///< by the user, before its end; a long video's latents so far were written
};

/// Samples, compares and writes what the job asks for; the figures are for rank 0 to print.
///
/// Ranks: All of `world`, with one answer.
[[nodiscard]] ending run_rank(latpar::any_communicator& world, const job& j,
                              const surroundings& around, report& figures);

}  // namespace generate

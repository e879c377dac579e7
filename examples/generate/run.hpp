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

/// Samples, compares and writes what the job asks for; the figures are for rank 0 to print.
///
/// Ranks: All of `world`. Returns false on every rank if the user stopped it; then nothing was
/// written.
[[nodiscard]] bool run_rank(latpar::any_communicator& world, const job& j,
                            const surroundings& around, report& figures);

}  // namespace generate

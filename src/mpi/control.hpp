// SPDX-License-Identifier: Apache-2.0
// What all traffic on control communicators has in common.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace latpar::inline v0::mpi::detail {

/// Tags of the control communicator, out of the range of those of payload, which are dtypes.
inline constexpr int gather_tag = 100;
inline constexpr int abort_tag = 101;
inline constexpr int quiet_tag = 102;

/// Looking for an abort costs more than looking for progress.
inline constexpr int polls_between_looks = 32;

/// Between two looks of a wait.
inline void relax(unsigned turn) {
    // More ranks than cores must not starve each other; the first turns are for latency.
    if (turn > 100) std::this_thread::yield();
}

/// Gives up the sends of a text that nobody will wait for, and the text with them.
inline void keep_for_ever(std::vector<MPI_Request>& sends, std::unique_ptr<std::string> text) {
    bool all_done = true;
    for (MPI_Request& sent : sends) {
        int done = 0;
        MPI_Test(&sent, &done, MPI_STATUS_IGNORE);
        if (done) continue;
        all_done = false;
        MPI_Request_free(&sent);
    }
    // MPI may read it until the process ends, and nobody will ever know whether it has.
    if (!all_done) static_cast<void>(text.release());
}

}  // namespace latpar::inline v0::mpi::detail

// SPDX-License-Identifier: Apache-2.0
// What thread ranks end with when something is refused or fails.
#pragma once

#include <latpar/comm/thread_team.hpp>

#include <exception>
#include <string>
#include <vector>

/// Runs f(comm) on thread ranks: the message of each rank's exception, empty if it threw none.
template <class F>
std::vector<std::string> messages_of(int ranks, F&& f) {
    std::vector<std::string> out(static_cast<std::size_t>(ranks));
    latpar::thread_team(ranks).run([&](latpar::thread_communicator& comm) {
        try {
            f(comm);
        } catch (const std::exception& error) {
            out[static_cast<std::size_t>(comm.rank())] = error.what();
        }
    });
    return out;
}

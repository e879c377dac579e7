// SPDX-License-Identifier: Apache-2.0
// The threads of a team as a harness of the conformance suite.
#pragma once

#include <latpar/comm/thread_team.hpp>

#include <string>
#include <utility>
#include <vector>

/// Each thread has its communicator wrapped by `wrap`.
template <class Wrap>
struct threads {
    latpar::thread_team team;
    Wrap wrap;

    template <class F>
    std::vector<std::string> run(F f) {
        std::vector<std::string> verdicts(static_cast<std::size_t>(team.size()));
        team.run([&](latpar::thread_communicator& comm) {
            auto wrapped = wrap(std::move(comm));
            verdicts[static_cast<std::size_t>(wrapped.rank())] = f(wrapped);
        });
        return verdicts;
    }
};

template <class Wrap>
threads(latpar::thread_team, Wrap) -> threads<Wrap>;

// SPDX-License-Identifier: Apache-2.0
// The processes of an MPI job as a harness of the conformance suite.
#pragma once

#include <latpar/mpi/communicator.hpp>

#include <exception>
#include <string>
#include <utility>
#include <vector>

/// Verdicts travel on a channel of their own, so that a failure of the communicator under test is
/// still reported by all.
template <class C>
struct processes {
    C comm;
    latpar::mpi::communicator verdicts = latpar::mpi::communicator::world();

    template <class F>
    std::vector<std::string> run(F f) {
        std::string verdict;
        try {
            verdict = f(comm);
        } catch (const std::exception& error) {
            verdict = latpar::detail::concat("threw: ", error.what());
        }
        return verdicts.control_all_gather(verdict);
    }
};

template <class C>
processes(C) -> processes<C>;

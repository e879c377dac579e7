// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes, by way of the installed package.
#include "sampling.hpp"

#include <latpar/mpi/communicator.hpp>
#include <latpar/mpi/environment.hpp>

int main() {
    latpar::mpi::environment environment;
    auto comm = latpar::mpi::communicator::world();
    return comm.size() == 2 && sample_and_compare(comm) ? 0 : 1;
}

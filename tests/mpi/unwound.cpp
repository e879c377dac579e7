// SPDX-License-Identifier: Apache-2.0
// An exception that leaves main on one rank, between two calls of the library: the others end too.
#include <latpar/comm/collectives.hpp>
#include <latpar/mpi/communicator.hpp>
#include <latpar/mpi/environment.hpp>

#include <cstdio>
#include <stdexcept>
#include <string_view>

using namespace latpar;

int main() {
    int rank = 0;
    std::string heard;
    try {
        // Both are destroyed on the exception's way to its handler; the environment finalises MPI,
        // which takes all ranks.
        const mpi::environment mpi;
        auto comm = mpi::communicator::world();
        auto part = comm.duplicate();
        rank = comm.rank();
        if (rank == 1) throw std::runtime_error("weights not found");
        barrier(part);
    } catch (const std::exception& error) {
        heard = error.what();
    }
    const std::string_view expected = rank == 1 ? "weights not found" : "aborted by rank 1 of ";
    const std::string_view reason = rank == 1 ? "" : "an exception has destroyed its communicator";
    if (heard.starts_with(expected) && heard.ends_with(reason)) return 0;
    std::fprintf(stderr, "rank %d: '%s'\n", rank, heard.c_str());
    return 1;
}

// SPDX-License-Identifier: Apache-2.0
// The main function of the tests that run under mpirun.
#define CATCH_CONFIG_RUNNER
#include <latpar/mpi/environment.hpp>

#include <support/catch.hpp>

int main(int argc, char** argv) {
    const latpar::mpi::environment mpi;
    return Catch::Session().run(argc, argv);
}

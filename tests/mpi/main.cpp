// SPDX-License-Identifier: Apache-2.0
// The main function of the tests that run under mpirun.
#define CATCH_CONFIG_RUNNER
#include <latpar/mpi/environment.hpp>

#include <support/catch.hpp>

#ifdef LATPAR_TEST_DEVICES
#include <cuda/enough_devices.hpp>
#endif

int main(int argc, char** argv) {
    const latpar::mpi::environment mpi;
#ifdef LATPAR_TEST_DEVICES
    if (!has_enough_devices()) return skipped;
#endif
    return Catch::Session().run(argc, argv);
}

// SPDX-License-Identifier: Apache-2.0
// The main function of the tests that run under mpirun.
#include <latpar/mpi/environment.hpp>

#include <support/run_tests.hpp>

#ifdef LATPAR_TEST_DEVICES
#include <cuda/enough_devices.hpp>
#endif

int main(int argc, char** argv) {
    const latpar::mpi::environment mpi;
#ifdef LATPAR_TEST_DEVICES
    if (!has_enough_devices()) return skipped;
#endif
    return run_tests(argc, argv);
}

// SPDX-License-Identifier: Apache-2.0
// The main function of the tests that need CUDA devices.
#include <cuda/enough_devices.hpp>
#include <support/run_tests.hpp>

int main(int argc, char** argv) {
    if (!has_enough_devices()) return skipped;
    return run_tests(argc, argv);
}

// SPDX-License-Identifier: Apache-2.0
// The main function of the tests that need CUDA devices.
#define CATCH_CONFIG_RUNNER
#include <cuda/enough_devices.hpp>
#include <support/catch.hpp>

int main(int argc, char** argv) {
    if (!has_enough_devices()) return skipped;
    return Catch::Session().run(argc, argv);
}

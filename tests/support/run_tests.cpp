// SPDX-License-Identifier: Apache-2.0
// Catch2's runner, compiled once for all test executables.
#define CATCH_CONFIG_RUNNER
#include <support/catch.hpp>
#include <support/run_tests.hpp>

int run_tests(int argc, char** argv) {
    return Catch::Session().run(argc, argv);
}

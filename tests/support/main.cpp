// SPDX-License-Identifier: Apache-2.0
// The main function of every test executable that brings none.
#include <support/run_tests.hpp>

int main(int argc, char** argv) {
    return run_tests(argc, argv);
}

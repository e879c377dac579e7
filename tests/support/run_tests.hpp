// SPDX-License-Identifier: Apache-2.0
// What the main functions of the tests call.
#pragma once

/// Runs the tests as the command line says; the exit status.
int run_tests(int argc, char** argv);

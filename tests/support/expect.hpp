// SPDX-License-Identifier: Apache-2.0
// Checks on thread ranks, where the test framework's own are not safe.
#pragma once

#include <stdexcept>
#include <string>

/// Throws if a condition does not hold; thread_team::run passes that on to the test.
#define EXPECT(...)                                                                           \
    do {                                                                                      \
        if (!(__VA_ARGS__))                                                                   \
            throw std::runtime_error("line " + std::to_string(__LINE__) + ": " #__VA_ARGS__); \
    } while (false)

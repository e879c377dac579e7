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

/// Throws unless `f` throws, with `text` in its message.
template <class F>
void expect_throws(F&& f, const std::string& text) {
    std::string message = "no exception";
    try {
        f();
    } catch (const std::exception& error) {
        message = error.what();
    }
    if (message.find(text) == std::string::npos) {
        throw std::runtime_error("expected an exception about '" + text + "', got: " + message);
    }
}

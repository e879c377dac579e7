// SPDX-License-Identifier: Apache-2.0
// A progress bar on a terminal, a few plain lines elsewhere.
#pragma once

#include <latpar/core/dtype.hpp>

#include <chrono>
#include <string>

namespace generate {

/// Tells how far a loop is, on standard error.
class progress {
public:
    /// Says nothing if `silent`. `unit` names one of the steps; 0 of them: no end.
    progress(std::string label, latpar::index_t steps, bool silent, std::string unit = "step");

    /// `done` of the steps, one at least, are finished.
    void update(latpar::index_t done);

private:
    std::string label_;
    latpar::index_t steps_;
    bool silent_;
    std::string unit_;
    bool terminal_;
    latpar::index_t told_tenths_ = 0;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace generate

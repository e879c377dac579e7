// SPDX-License-Identifier: Apache-2.0
// Whether this machine has the devices that a test needs; LATPAR_TEST_DEVICES is their number.
#pragma once

#include <latpar/cuda/device.hpp>

#include <iostream>

/// What CTest takes for a test that was not run.
inline constexpr int skipped = 77;

/// Where there are too few it says so.
inline bool has_enough_devices() {
    const int there = latpar::cuda::device_count();
    if (there >= LATPAR_TEST_DEVICES) return true;
    std::cout << "skipped: " << LATPAR_TEST_DEVICES << " CUDA device(s) are needed, there are "
              << there << '\n';
    return false;
}

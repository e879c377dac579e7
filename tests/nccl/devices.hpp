// SPDX-License-Identifier: Apache-2.0
// The devices of the ranks of a test, if there are enough.
#pragma once

#include <latpar/cuda/device.hpp>

#include <iostream>

/// Where there are fewer it says so, for CTest to see, and a test returns.
inline bool has_devices(int count) {
    if (latpar::cuda::device_count() >= count) return true;
    std::cout << "skipped: " << latpar::cuda::device_count() << " CUDA devices where " << count
              << " are needed\n";
    return false;
}

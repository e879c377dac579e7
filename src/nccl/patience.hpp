// SPDX-License-Identifier: Apache-2.0
// How a thread waits.
#pragma once

#include <chrono>
#include <thread>

namespace latpar::inline v0::nccl::detail {

/// For a thread that waits: quick at first, then with little work.
class patience {
public:
    void wait() {
        if (++rounds_ < 2000) {
            std::this_thread::yield();
        } else {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }

private:
    int rounds_ = 0;
};

}  // namespace latpar::inline v0::nccl::detail

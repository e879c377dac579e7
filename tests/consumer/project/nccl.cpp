// SPDX-License-Identifier: Apache-2.0
// The communicator over NCCL, by way of the installed package and the host's compiler.
#include <latpar/comm/thread_team.hpp>
#include <latpar/nccl/communicator.hpp>

#include <atomic>
#include <iostream>

int main() {
    // Two ranks that have one device, or none, must both be told.
    std::atomic<int> told = 0;
    latpar::thread_team team(2);
    team.run([&](latpar::thread_communicator& threads) {
        try {
            const auto comm = latpar::nccl::communicator::over(threads.duplicate());
        } catch (const latpar::error& error) {
            if (told++ == 0) std::cout << error.what() << '\n';
        }
    });
    return told == 2 ? 0 : 1;
}

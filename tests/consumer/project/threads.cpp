// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads, by way of the installed package.
#include "sampling.hpp"

#include <atomic>
#include <iostream>

int main() {
    std::atomic<int> agreed = 0;
    latpar::thread_team team(3);
    team.run([&](latpar::thread_communicator& comm) { agreed += sample_and_compare(comm); });
    std::cout << "latpar " << LATPAR_VERSION_MAJOR << '.' << LATPAR_VERSION_MINOR << ": " << agreed
              << " of 3 ranks agree\n";
    return agreed == 3 ? 0 : 1;
}

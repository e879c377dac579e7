// SPDX-License-Identifier: Apache-2.0
// What all ranks refuse alike, each tells by its own error, whichever of them has left by then.
#include <latpar/comm/agreement.hpp>
#include <latpar/mpi/communicator.hpp>

#include <support/catch.hpp>

#include <chrono>
#include <thread>

using namespace latpar;

TEST_CASE("a refusal that destroys the communicators of all ranks has one text on each") {
    std::string expected;
    std::string other;
    for (int round = 0; round < 50; ++round) {
        try {
            auto world = mpi::communicator::world();
            auto part = world.duplicate();
            agree_on(round % 2 == 0 ? world : part, "the plan", part.rank() == 0 ? 1 : 2);
        } catch (const usage_error& error) {
            expected = error.what();
        } catch (const std::exception& error) {
            other = error.what();
        }
    }
    CHECK(other.empty());
    CHECK_THAT(expected, ContainsSubstring("the ranks disagree on the plan: rank 0: 1; "));
}

TEST_CASE("an abort from elsewhere ends all who are making communicators, at whatever point") {
    for (int round = 0; round < 8; ++round) {
        std::string heard;
        try {
            auto world = mpi::communicator::world();
            const bool aborts = world.rank() + 1 == world.size();
            auto part = world.split(aborts ? 1 : 0, world.rank());
            if (aborts) {
                std::this_thread::sleep_for(std::chrono::microseconds(300 * round));
                world.abort("no more");
                heard = "no more";
            } else {
                for (;;) static_cast<void>(part->duplicate());
            }
        } catch (const comm_error& error) {
            heard = error.what();
        }
        CHECK_THAT(heard, ContainsSubstring("no more"));
    }
}

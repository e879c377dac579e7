// SPDX-License-Identifier: Apache-2.0
// What all ranks refuse alike, each tells by its own error, whichever of them has left by then.
#include <latpar/comm/agreement.hpp>
#include <latpar/mpi/communicator.hpp>

#include <support/catch.hpp>

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

// SPDX-License-Identifier: Apache-2.0
// Division by a multiplication.
#include <cuda/detail/loop_shape.hpp>
#include <support/catch.hpp>

#include <random>

using namespace latpar;
using cuda::detail::divider;

TEST_CASE("a divider divides exactly") {
    index_t wrong = 0;
    for (std::uint32_t by = 1; by < 600; ++by) {
        const divider d(by);
        for (std::uint32_t n = 0; n < 3000; ++n) wrong += d.quotient(n) != n / by;
    }
    std::mt19937 generator(1);
    constexpr std::uint32_t end = 1u << 31;
    for (int trial = 0; trial < 200000; ++trial) {
        // Of all magnitudes, and at both sides of a multiple.
        const std::uint32_t by = 1 + (generator() >> (1 + generator() % 31)) % (end - 1);
        const std::uint32_t quotient = (end - 1) / by - generator() % ((end - 1) / by + 1);
        const divider d(by);
        for (const std::uint32_t n : {quotient * by, quotient * by + by - 1, end - 1}) {
            if (n < end) wrong += d.quotient(n) != n / by;
        }
        if (quotient > 0) wrong += d.quotient(quotient * by - 1) != quotient - 1;
    }
    for (const std::uint32_t by : {end - 1, end}) {
        wrong += divider(by).quotient(end - 2) != (end - 2) / by;
        wrong += divider(by).quotient(end - 1) != (end - 1) / by;
    }
    CHECK(wrong == 0);
}

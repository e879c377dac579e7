// SPDX-License-Identifier: Apache-2.0
// Counting NaNs and infinities on the host.
#include <latpar/kernel/count_non_finite.hpp>

#include <kernel/count_cases.hpp>
#include <support/catch.hpp>

using namespace latpar;

TEST_CASE("NaNs and infinities are counted at the positions of a view and nowhere else") {
    std::mt19937 generator(31);
    index_t different = 0;
    std::uint64_t found = 0;
    for (int trial = 0; trial < 600; ++trial) {
        random_latent values(random_extents(generator), random_type(generator), generator);
        count_cases::sprinkle(values, generator);
        const const_latent_view view = count_cases::varied(values.view(), generator);
        const std::uint64_t expected = count_cases::counted(view);
        different += kernel::count_non_finite(view) != expected;
        found += expected;
    }
    CHECK(different == 0);
    CHECK(found > 10000);
}

TEST_CASE("a count refuses what it cannot read") {
    std::vector<std::int32_t> whole(4);
    CHECK_THROWS_WITH(
        kernel::count_non_finite(make_view(whole.data(), std::array<index_t, 5>{1, 1, 1, 1, 4})),
        ContainsSubstring("i32"));
    std::vector<float> values(4);
    auto there = make_view(values.data(), std::array<index_t, 5>{1, 1, 1, 1, 4});
    there.space = memory_space::cuda;
    CHECK_THROWS_WITH(kernel::count_non_finite(there), ContainsSubstring("cuda memory"));
}

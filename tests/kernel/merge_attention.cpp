// SPDX-License-Identifier: Apache-2.0
// merge_attention and copy_all: kernel::reference by hand, kernel::host against it.
#include "random_latent.hpp"

#include <latpar/core/memory.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/kernel/reference.hpp>

#include <support/catch.hpp>

#include <limits>

using namespace latpar;

namespace {

constexpr float none = -std::numeric_limits<float>::infinity();

}  // namespace

TEMPLATE_TEST_CASE("partial results merge by the sums of their exponentials", "", kernel::reference,
                   kernel::host) {
    // Two heads: one with sums 1 and 3, one without a key on the left.
    std::vector<float> out{8, 16, std::nanf(""), std::nanf("")};
    std::vector<float> lse{0, none};
    std::vector<float> part{4, 0, 5, 6};
    std::vector<float> part_lse{std::log(3.0f), 2};
    const std::array<index_t, 5> heads{1, 1, 1, 2, 2};
    const std::array<index_t, 5> logs{1, 1, 1, 2, 1};
    const auto merge = [&] {
        TestType{}.merge_attention(make_view(out.data(), heads), make_view(lse.data(), logs),
                                   make_view(part.data(), heads), make_view(part_lse.data(), logs));
    };
    merge();
    CHECK(std::abs(out[0] - 5) < 1e-6f);
    CHECK(std::abs(out[1] - 4) < 1e-6f);
    CHECK(out[2] == 5);
    CHECK(out[3] == 6);
    CHECK(std::abs(lse[0] - std::log(4.0f)) < 1e-6f);
    CHECK(lse[1] == 2);
    // Neither side has a key: nothing is read, and the result is zero.
    lse = {none, 2};
    part_lse = {none, none};
    out[0] = part[0] = std::nanf("");
    merge();
    CHECK(out[0] == 0);
    CHECK(out[2] == 5);
    CHECK(lse == std::vector<float>{none, 2});
}

TEST_CASE("host merges have the bits of the reference") {
    std::mt19937 generator(9);
    index_t different = 0;
    for (int trial = 0; trial < 300; ++trial) {
        auto extents = random_extents(generator);
        auto logs = extents;
        logs[4] = 1;
        random_latent out(extents, random_type(generator), generator);
        random_latent part(extents, random_type(generator), generator);
        random_latent lse(logs, dtype::f32, generator);
        random_latent part_lse(logs, dtype::f32, generator);
        const auto run = [&](const auto& kernels, random_latent& o, random_latent& l) {
            kernels.merge_attention(o.view(), l.view(), part.view(), part_lse.view());
        };
        random_latent expected = out;
        random_latent expected_lse = lse;
        run(kernel::reference{}, expected, expected_lse);
        run(kernel::host{}, out, lse);
        different += !(out == expected && lse == expected_lse);
    }
    CHECK(different == 0);
}

TEMPLATE_TEST_CASE("merge_attention refuses what it cannot do", "", kernel::reference,
                   kernel::host) {
    const TestType kernels;
    latent a({1, 1, 3, 2, 4});
    latent b({1, 1, 3, 2, 4});
    latent wide({1, 1, 3, 2, 5});
    latent l({1, 1, 3, 2, 1});
    latent m({1, 1, 3, 2, 1});
    latent half({1, 1, 3, 2, 1}, dtype::f16);
    const auto refused = [&](latent& out, latent& lse, latent& part, latent& part_lse,
                             const char* text) {
        CHECK_THROWS_WITH(
            kernels.merge_attention(out.view(), lse.view(), part.view(), part_lse.view()),
            ContainsSubstring(text));
    };
    refused(a, l, wide, m, "must be the same");
    refused(a, wide, b, m, "one for each token and head");
    refused(a, half, b, m, "use f32");
    refused(a, l, a, m, "merge two results");
}

TEMPLATE_TEST_CASE("copy_all makes every copy", "", kernel::reference, kernel::host) {
    std::mt19937 generator(4);
    std::vector<random_latent> sources;
    std::vector<random_latent> targets;
    std::vector<random_latent> expected;
    for (int k = 0; k < 5; ++k) {
        const auto extents = random_extents(generator);
        sources.emplace_back(extents, random_type(generator), generator);
        targets.emplace_back(extents, random_type(generator), generator);
    }
    expected = targets;
    std::vector<kernel::copy_pair> copies;
    for (std::size_t k = 0; k < 5; ++k) {
        TestType{}.copy(sources[k].view(), expected[k].view());
        copies.push_back({sources[k].view(), targets[k].view()});
    }
    TestType{}.copy_all(copies);
    CHECK(targets == expected);
    TestType{}.copy_all({});
}

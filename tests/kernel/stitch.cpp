// SPDX-License-Identifier: Apache-2.0
// stitch: kernel::reference by hand, kernel::host against it.
#include "random_latent.hpp"

#include <latpar/core/memory.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/kernel/reference.hpp>

#include <support/catch.hpp>

using namespace latpar;

TEST_CASE("stitch weighs, adds and cuts parts that reach beyond the output") {
    std::vector<float> left{1, 2, 3, 4};
    std::vector<float> right{10, 20, 30};
    std::vector<float> output(6, -7);
    const std::vector<float> left_weights{1, 1, 0.75f, 0.25f};
    const std::vector<float> right_weights{0.25f, 0.5f, 1};
    const auto view = [](std::vector<float>& values) {
        return make_view(values.data(),
                         std::array<index_t, 5>{1, 1, 1, 1, static_cast<index_t>(values.size())});
    };
    // Positions -1..2 and 1..3 of 0..5: 0 is left's alone, 3 right's alone, 4 and 5 nobody's.
    const std::vector<kernel::stitch_part> parts{{view(left), -1, left_weights},
                                                 {view(right), 1, right_weights}};
    kernel::reference{}.stitch(view(output), axis::w, parts);
    CHECK(output == std::vector<float>{2, 0.75f * 3 + 0.25f * 10, 0.25f * 4 + 0.5f * 20, 30, 0, 0});
}

TEST_CASE("a position that one part covers with weight one keeps its bits") {
    std::vector<float> values{-0.0f, 1e-40f};
    std::vector<float> output(2, 1);
    const std::vector<float> weights{1, 1};
    const std::array<index_t, 5> extents{1, 1, 2, 1, 1};
    const kernel::stitch_part part{make_view(values.data(), extents), 0, weights};
    kernel::host{}.stitch(make_view(output.data(), extents), axis::t, {&part, 1});
    CHECK(std::signbit(output[0]));
    CHECK(output[1] == 1e-40f);
}

TEST_CASE("host stitches have the bits of the reference") {
    std::mt19937 generator(4);
    index_t different = 0;
    for (const axis along : all_axes) {
        for (int trial = 0; trial < 200; ++trial) {
            const auto extents = random_extents(generator);
            const std::size_t cut = 2 + index_of(along);
            random_latent output(extents, random_type(generator), generator);
            random_latent expected = output;

            const std::size_t count = generator() % 5;
            std::vector<random_latent> predictions;
            std::vector<std::vector<float>> weights;
            std::vector<kernel::stitch_part> parts;
            for (std::size_t k = 0; k < count; ++k) {
                auto part_extents = extents;
                part_extents[cut] = static_cast<index_t>(generator() % 30);
                predictions.emplace_back(part_extents, random_type(generator), generator);
                auto& own = weights.emplace_back();
                for (index_t i = 0; i < part_extents[cut]; ++i) {
                    own.push_back(static_cast<float>(generator() % 9) / 7);
                }
            }
            for (std::size_t k = 0; k < count; ++k) {
                const auto begin = static_cast<index_t>(generator() % 40) - 15;
                parts.push_back({predictions[k].view(), begin, weights[k]});
            }
            kernel::reference{}.stitch(expected.view(), along, parts);
            kernel::host{}.stitch(output.view(), along, parts);
            different += !(output == expected);
        }
    }
    CHECK(different == 0);
}

TEMPLATE_TEST_CASE("stitch refuses what it cannot do", "", kernel::reference, kernel::host) {
    const TestType kernels;
    latent output({1, 2, 3, 4, 5});
    latent prediction({1, 2, 3, 4, 3});
    std::vector<float> weights(3, 1);
    kernel::stitch_part part{prediction.view(), 0, weights};

    CHECK_THROWS_AS(kernels.stitch(output.view(), axis::h, {&part, 1}), usage_error);
    CHECK_THROWS_WITH(kernels.stitch(output.view(), axis::h, {&part, 1}),
                      ContainsSubstring("stitch part 0") && ContainsSubstring("along H only"));
    part.weights = std::span(weights).first(2);
    CHECK_THROWS_WITH(kernels.stitch(output.view(), axis::w, {&part, 1}),
                      ContainsSubstring("2 weights for 3 positions"));
    const std::vector<float> five(5, 1);
    part = {output.view(), 0, five};
    CHECK_THROWS_WITH(kernels.stitch(output.view(), axis::w, {&part, 1}),
                      ContainsSubstring("not done in place"));
    latent integers({1, 2, 3, 4, 5}, dtype::i64);
    CHECK_THROWS_WITH(kernels.stitch(integers.view(), axis::w, {}), ContainsSubstring("i64"));
}

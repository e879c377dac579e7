// SPDX-License-Identifier: Apache-2.0
// stitch_combination: kernel::reference and kernel::host against the two calls that it joins.
#include "random_latent.hpp"

#include <latpar/core/memory.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/kernel/reference.hpp>

#include <support/catch.hpp>

#include <deque>

using namespace latpar;

TEMPLATE_TEST_CASE("a stitched input is rounded to its type and combined", "", kernel::reference,
                   kernel::host) {
    // 1 + 2^-8 is halfway between two bfloat16, of which 1 is even.
    std::vector<float> left{1.00390625f, 2};
    std::vector<float> right{4, 8};
    std::vector<float> z{10, 20, 30, 40};
    const std::vector<float> weights{1, 0.5f};
    const std::vector<float> right_weights{0.5f, 1};
    const auto view = [](std::vector<float>& values) {
        return make_view(values.data(),
                         std::array<index_t, 5>{1, 1, 1, 1, static_cast<index_t>(values.size())});
    };
    const std::vector<kernel::stitch_part> parts{{view(left), 0, weights},
                                                 {view(right), 1, right_weights}};
    const std::array<const_latent_view, 2> inputs{view(z), {}};
    const std::array<float, 2> coefficients{1, -2};
    const latent_view output = view(z);
    TestType{}.stitch_combination({1, axis::w, dtype::bf16, parts}, inputs, coefficients,
                                  {&output, 1});
    // Stitched: 1, 0.5 * 2 + 0.5 * 4, 8, and nothing where no part is.
    CHECK(z == std::vector<float>{8, 14, 14, 40});
}

TEMPLATE_TEST_CASE("a combination of a stitch has the bits of the two calls", "", kernel::reference,
                   kernel::host) {
    std::mt19937 generator(8);
    constexpr std::array<float, 5> drawn{0, 1, -1, 0.3f, -1.7f};
    index_t different = 0;
    for (const axis along : all_axes) {
        for (int trial = 0; trial < 150; ++trial) {
            const auto extents = random_extents(generator);
            const std::size_t cut = 2 + index_of(along);
            std::deque<random_latent> predictions;
            std::deque<std::vector<float>> weights;
            std::vector<kernel::stitch_part> parts;
            const std::size_t part_count = generator() % 5;
            for (std::size_t k = 0; k < part_count; ++k) {
                auto part_extents = extents;
                part_extents[cut] = static_cast<index_t>(generator() % 30);
                predictions.emplace_back(part_extents, random_type(generator), generator);
                auto& own = weights.emplace_back();
                for (index_t i = 0; i < part_extents[cut]; ++i) {
                    own.push_back(static_cast<float>(generator() % 9) / 7);
                }
                parts.push_back(
                    {predictions[k].view(), static_cast<index_t>(generator() % 40) - 15, own});
            }
            // The stitched input, two more, and two outputs, the first of them in place.
            std::vector<random_latent> tensors;
            for (int i = 0; i < 3; ++i) {
                tensors.emplace_back(extents, random_type(generator), generator);
            }
            random_latent stitched(extents, random_type(generator), generator);
            const std::size_t index = generator() % 3;
            std::vector<float> coefficients(6);
            for (float& value : coefficients) value = drawn[generator() % drawn.size()];
            const auto with = [&](std::vector<random_latent>& on, const const_latent_view& view) {
                std::vector<const_latent_view> inputs{on[0].view(), on[1].view()};
                inputs.insert(inputs.begin() + static_cast<std::ptrdiff_t>(index), view);
                return inputs;
            };
            std::vector<random_latent> expected = tensors;
            kernel::reference{}.stitch(stitched.view(), along, parts);
            kernel::reference{}.linear_combination(
                with(expected, stitched.view()), coefficients,
                std::array{expected[0].view(), expected[2].view()});
            TestType{}.stitch_combination({index, along, stitched.view().type, parts},
                                          with(tensors, {}), coefficients,
                                          std::array{tensors[0].view(), tensors[2].view()});
            different += !(tensors == expected);
        }
    }
    CHECK(different == 0);
}

TEMPLATE_TEST_CASE("stitch_combination refuses what it cannot do", "", kernel::reference,
                   kernel::host) {
    const TestType kernels;
    latent a({1, 2, 3, 4, 5});
    latent prediction({1, 2, 3, 4, 3});
    const std::vector<float> weights(3, 1);
    const std::vector<float> five(5, 1);
    kernel::stitch_part part{prediction.view(), 0, weights};
    kernel::stitched_input stitched{1, axis::w, dtype::f32, {&part, 1}};
    std::vector<const_latent_view> inputs{a.view(), {}};
    std::vector<float> coefficients{1, 1};
    const latent_view output = a.view();
    const auto refused = [&](const char* text) {
        CHECK_THROWS_WITH(kernels.stitch_combination(stitched, inputs, coefficients, {&output, 1}),
                          ContainsSubstring(text));
    };
    stitched.along = axis::h;
    refused("along H only");
    stitched.along = axis::w;
    stitched.index = 2;
    refused("input 2 of 2");
    stitched.index = 1;
    stitched.type = dtype::i32;
    refused("i32");
    stitched.type = dtype::f32;
    part = {output, 0, five};
    refused("not done in place");
    // What no output reads may be anything.
    coefficients[1] = 0;
    kernels.stitch_combination(stitched, inputs, coefficients, {&output, 1});
    coefficients[1] = 1;
    part = {prediction.view(), 0, weights};
    inputs[1] = prediction.view();
    refused("input 1 is stitched but has memory");
    inputs = {prediction.view(), {}};
    refused("input 0 has the extents");
    CHECK_THROWS_AS(kernels.stitch_combination(stitched, inputs, coefficients, {&output, 1}),
                    usage_error);
}

// SPDX-License-Identifier: Apache-2.0
// linear_combination: kernel::reference by hand, kernel::host against it.
#include "random_latent.hpp"

#include <latpar/core/memory.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/kernel/reference.hpp>

#include <support/catch.hpp>

using namespace latpar;

namespace {

float random_coefficient(std::mt19937& generator) {
    constexpr std::array<float, 6> values{0, 0, 1, -1, 0.3f, -1.7f};
    return values[generator() % values.size()];
}

}  // namespace

TEMPLATE_TEST_CASE("inputs are added in order, in place, and unread where the coefficient is zero",
                   "", kernel::reference, kernel::host) {
    const std::array<index_t, 5> extents{1, 1, 1, 1, 2};
    std::vector<float> a{1, 2};
    std::vector<float> b{10, 20};
    std::vector<float> poison(2, std::nanf(""));
    const auto view = [&](std::vector<float>& values) { return make_view(values.data(), extents); };
    const std::array<const_latent_view, 4> inputs{view(a), view(b), view(poison), {}};
    const std::array<latent_view, 2> outputs{view(b), view(a)};
    const std::array<float, 8> coefficients{2, 1, 0, 0, 0, 1, 0, 0};
    TestType{}.linear_combination(inputs, coefficients, outputs);
    CHECK(b == std::vector<float>{12, 24});
    CHECK(a == std::vector<float>{10, 20});

    // The order shows in float32: (1 + 2^24) - 2^24 = 0, not 1.
    std::vector<float> one{1, 1};
    std::vector<float> big{16777216, 16777216};
    const std::array<const_latent_view, 3> three{view(one), view(big), view(big)};
    const std::array<float, 3> signs{1, 1, -1};
    const latent_view result = view(a);
    TestType{}.linear_combination(three, signs, {&result, 1});
    CHECK(a == std::vector<float>{0, 0});

    const std::array<float, 3> nothing{0, 0, 0};
    TestType{}.linear_combination(three, nothing, {&result, 1});
    CHECK(a == std::vector<float>{0, 0});
    CHECK_FALSE(std::signbit(a[0]));

    std::vector<float> negative_zero{-0.0f, -0.0f};
    const const_latent_view alone = view(negative_zero);
    const float unit = 1;
    TestType{}.linear_combination({&alone, 1}, {&unit, 1}, {&result, 1});
    CHECK(std::signbit(a[0]));
}

TEST_CASE("host linear combinations have the bits of the reference, in place or not") {
    std::mt19937 generator(5);
    index_t different = 0;
    for (int trial = 0; trial < 300; ++trial) {
        const auto extents = random_extents(generator);
        const std::size_t input_count = 1 + generator() % 5;
        const std::size_t output_count = 1 + generator() % 4;
        std::vector<random_latent> tensors;
        for (std::size_t i = 0; i < input_count + output_count; ++i) {
            tensors.emplace_back(extents, random_type(generator), generator);
        }
        // Outputs are tensors of their own or, as often, one of the inputs.
        std::vector<std::size_t> targets(tensors.size());
        std::iota(targets.begin(), targets.end(), 0);
        std::shuffle(targets.begin(), targets.end(), generator);
        targets.resize(output_count);
        std::vector<float> coefficients(input_count * output_count);
        for (float& value : coefficients) value = random_coefficient(generator);

        const auto run = [&](const auto& kernels, std::vector<random_latent>& on) {
            std::vector<const_latent_view> inputs;
            std::vector<latent_view> outputs;
            for (std::size_t i = 0; i < input_count; ++i) inputs.emplace_back(on[i].view());
            for (const std::size_t i : targets) outputs.push_back(on[i].view());
            kernels.linear_combination(inputs, coefficients, outputs);
        };
        std::vector<random_latent> expected = tensors;
        run(kernel::reference{}, expected);
        run(kernel::host{}, tensors);
        different += !(tensors == expected);
    }
    CHECK(different == 0);
}

TEMPLATE_TEST_CASE("linear_combination refuses what it cannot do", "", kernel::reference,
                   kernel::host) {
    const TestType kernels;
    latent a({1, 2, 3, 4, 5});
    latent b({1, 2, 3, 4, 6});
    const std::array<const_latent_view, 1> in_a{a.view()};
    const std::array<const_latent_view, 1> in_b{b.view()};
    const std::array<latent_view, 1> out_a{a.view()};
    const std::array<latent_view, 2> twice{a.view(), a.view()};
    const std::array<float, 2> one{1, 1};
    const auto first = std::span(one).first(1);

    CHECK_THROWS_AS(kernels.linear_combination(in_a, one, out_a), usage_error);
    CHECK_THROWS_WITH(kernels.linear_combination(in_a, one, out_a),
                      ContainsSubstring("2 coefficients; it takes 1"));
    CHECK_THROWS_WITH(kernels.linear_combination(in_b, first, out_a),
                      ContainsSubstring("input 0") && ContainsSubstring("[1, 2, 3, 4, 6]"));
    CHECK_THROWS_WITH(kernels.linear_combination(in_a, one, twice),
                      ContainsSubstring("output 1 and output 0"));
    CHECK_THROWS_WITH(kernels.linear_combination(std::vector<const_latent_view>(17, a.view()),
                                                 std::vector<float>(17, 1), out_a),
                      ContainsSubstring("17 inputs") && ContainsSubstring("at most 16"));

    auto transposed = a.view();
    std::swap(transposed.extents[2], transposed.extents[3]);
    std::swap(transposed.strides[2], transposed.strides[3]);
    transposed.extents = a.view().extents;
    const std::array<const_latent_view, 1> overlapping{transposed};
    CHECK_THROWS_WITH(kernels.linear_combination(overlapping, first, out_a),
                      ContainsSubstring("differ in type or strides"));
}

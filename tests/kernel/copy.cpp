// SPDX-License-Identifier: Apache-2.0
// copy and round: kernel::reference by hand, kernel::host against it.
#include "random_latent.hpp"

#include <latpar/core/memory.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/kernel/reference.hpp>

#include <support/catch.hpp>

using namespace latpar;

TEST_CASE("copy moves a box and converts it") {
    std::vector<float> source(2 * 3 * 4);
    std::iota(source.begin(), source.end(), 0.0f);
    const auto from = make_view(source.data(), std::array<index_t, 5>{1, 1, 2, 3, 4});
    std::vector<bfloat16> target(2 * 2 * 2);
    const auto to = make_view(target.data(), std::array<index_t, 5>{1, 1, 2, 2, 2});
    kernel::reference{}.copy(subview(from, {{0, 1, 2}, {2, 2, 2}}), to);
    std::vector<float> got;
    for (const bfloat16 value : target) got.push_back(to_float(value));
    CHECK(got == std::vector<float>{6, 7, 10, 11, 18, 19, 22, 23});
}

TEST_CASE("host copies have the bits of the reference, whatever the layouts and types") {
    std::mt19937 generator(1);
    index_t different = 0;
    for (const dtype from : computed_types) {
        for (const dtype to : computed_types) {
            for (int trial = 0; trial < 60; ++trial) {
                const auto extents = random_extents(generator);
                random_latent source(extents, from, generator);
                random_latent target(extents, to, generator);
                random_latent expected = target;
                kernel::reference{}.copy(source.view(), expected.view());
                kernel::host{}.copy(source.view(), target.view());
                different += !(target == expected);
            }
        }
    }
    CHECK(different == 0);
}

TEST_CASE("host converts every half and bfloat as the reference does, NaNs included") {
    for (const dtype from : {dtype::bf16, dtype::f16}) {
        std::vector<std::uint16_t> bits(65536);
        std::iota(bits.begin(), bits.end(), std::uint16_t{0});
        const std::array<index_t, 5> extents{1, 1, 1, 1, 65536};
        const_latent_view source{reinterpret_cast<const std::byte*>(bits.data()), extents,
                                 dense_strides(extents), from};
        for (const dtype to : computed_types) {
            latent expected(extents, to);
            latent got(extents, to);
            kernel::reference{}.copy(source, expected.view());
            kernel::host{}.copy(source, got.view());
            const auto bytes = [](latent& l) {
                return std::vector(l.view().data, l.view().data + l.bytes());
            };
            CHECK(bytes(got) == bytes(expected));
        }
    }
}

TEST_CASE("a copy onto itself changes nothing") {
    std::mt19937 generator(2);
    random_latent values({1, 2, 3, 4, 5}, dtype::f32, generator);
    const random_latent before = values;
    kernel::reference{}.copy(values.view(), values.view());
    CHECK(values == before);
    kernel::host{}.copy(values.view(), values.view());
    CHECK(values == before);
}

TEST_CASE("round leaves what the type can hold") {
    std::vector<float> values{1.0f, 1.00390625f, 1.01171875f, -0.0f, 70000.0f};
    const auto view = make_view(values.data(), std::array<index_t, 5>{1, 1, 1, 1, 5});
    kernel::reference{}.round(view, dtype::bf16);
    // Halfway between 1 and 1 + 2^-7, and between 1 + 2^-7 and 1 + 2^-6: to even.
    CHECK(values == std::vector<float>{1.0f, 1.0f, 1.015625f, -0.0f, 70144.0f});
    CHECK(std::signbit(values[3]));
    kernel::reference{}.round(view, dtype::f16);
    CHECK(std::isinf(values[4]));
}

TEST_CASE("host rounds as the reference does") {
    std::mt19937 generator(3);
    index_t different = 0;
    index_t unstable = 0;
    for (const dtype type : computed_types) {
        for (const dtype target : computed_types) {
            for (int trial = 0; trial < 40; ++trial) {
                random_latent values(random_extents(generator), type, generator);
                random_latent expected = values;
                kernel::reference{}.round(expected.view(), target);
                kernel::host{}.round(values.view(), target);
                different += !(values == expected);
                kernel::host{}.round(values.view(), target);
                unstable += !(values == expected);
            }
        }
    }
    CHECK(different == 0);
    CHECK(unstable == 0);
}

TEMPLATE_TEST_CASE("copy and round refuse what they cannot do", "", kernel::reference,
                   kernel::host) {
    const TestType kernels;
    latent a({1, 2, 3, 4, 5});
    latent b({1, 2, 3, 4, 6});
    CHECK_THROWS_AS(kernels.copy(a.view(), b.view()), usage_error);
    CHECK_THROWS_WITH(kernels.copy(a.view(), b.view()),
                      ContainsSubstring("[1, 2, 3, 4, 5]") && ContainsSubstring("[1, 2, 3, 4, 6]"));

    latent integers({1, 2, 3, 4, 5}, dtype::i32);
    CHECK_THROWS_WITH(kernels.copy(integers.view(), a.view()), ContainsSubstring("i32"));
    CHECK_THROWS_WITH(kernels.round(a.view(), dtype::u8), ContainsSubstring("u8"));

    auto on_device = a.view();
    on_device.space = memory_space::cuda;
    CHECK_THROWS_WITH(kernels.copy(on_device, a.view()), ContainsSubstring("cuda memory"));

    auto without_memory = a.view();
    without_memory.data = nullptr;
    CHECK_THROWS_WITH(kernels.copy(a.view(), without_memory), ContainsSubstring("no memory"));

    auto misaligned = a.view();
    misaligned.data += 2;
    CHECK_THROWS_WITH(kernels.round(misaligned, dtype::bf16), ContainsSubstring("multiple of 4"));

    auto transposed = a.view();
    std::swap(transposed.strides[2], transposed.strides[3]);
    CHECK_THROWS_WITH(kernels.copy(a.view(), transposed), ContainsSubstring("begin at the same"));

    auto negative = a.view();
    negative.extents[1] = -2;
    CHECK_THROWS_WITH(kernels.round(negative, dtype::bf16), ContainsSubstring("negative"));
}

// SPDX-License-Identifier: Apache-2.0
// Noise that does not depend on who draws it: its bits, its partitions and its distribution.
#include <latpar/core/memory.hpp>
#include <latpar/schedule/philox.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <support/catch.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <random>
#include <vector>

using namespace latpar;

namespace {

latent draw(const philox_noise& source, const box& where, noise_key key = {}, index_t batch = 1,
            index_t channels = 1) {
    latent out({batch, channels, where.extent[0], where.extent[1], where.extent[2]});
    source.fill(out.view(), where, key);
    return out;
}

double correlation(std::span<const float> a, std::span<const float> b) {
    double ab = 0;
    double aa = 0;
    double bb = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        ab += double{a[i]} * b[i];
        aa += double{a[i]} * a[i];
        bb += double{b[i]} * b[i];
    }
    return ab / std::sqrt(aa * bb);
}

}  // namespace

TEST_CASE("the sequence is frozen") {
    const auto at = [](std::uint64_t seed, noise_key key, index_t b, index_t c,
                       const extents3& origin) {
        const latent values = draw(philox_noise(seed), {origin, {1, 1, 1}}, key, b + 1, c + 1);
        return std::bit_cast<std::uint32_t>(
            values.elements<float>()[static_cast<std::size_t>(b * (c + 1) + c)]);
    };
    CHECK(at(0, {}, 0, 0, {0, 0, 0}) == 0x3ecdf058);
    CHECK(at(0, {}, 0, 0, {0, 0, 1}) == 0xbeea1bf9);
    CHECK(at(0, {}, 0, 0, {0, 0, 2}) == 0xc02cd73d);
    CHECK(at(0, {}, 0, 0, {0, 0, 3}) == 0x3f4a66eb);
    CHECK(at(42, {0, 0}, 0, 15, {20, 59, 103}) == 0x3eaa777d);
    CHECK(at(42, {1, 7}, 0, 3, {2, 30, 51}) == 0xbf6c86b0);
    CHECK(at(0x123456789abcdef0, {5, 1000000}, 1, 2, {3, 4, 6}) == 0xbf686fb6);
    CHECK(at(42, {0, 3}, 3, 0, {1000000, 0, 5}) == 0xbe439556);
}

TEST_CASE("the values are those that the sequence promises") {
    const std::uint64_t seed = 0x0123456789abcdef;
    const noise_key key{0xfedcba9876543210, 12};
    const box where{{4, 5, 6}, {2, 3, 9}};
    const latent got = draw(philox_noise(seed), where, key, 2, 3);
    const auto subkey =
        schedule::philox4x32({0x76543210, 0xfedcba98, 12, 0}, {0x89abcdef, 0x01234567});
    double worst = 0;
    for (std::uint32_t b = 0; b < 2; ++b)
        for (std::uint32_t c = 0; c < 3; ++c)
            for (std::uint32_t t = 4; t < 6; ++t)
                for (std::uint32_t h = 5; h < 8; ++h)
                    for (std::uint32_t w = 6; w < 15; ++w) {
                        const auto words = schedule::philox4x32({w / 4, h, t, c + 65536 * b},
                                                                {subkey[0], subkey[1]});
                        const std::size_t pair = w % 4 / 2 * 2;
                        const double u = ((words[pair] >> 1) + 0.5) / 2147483648.0;
                        const double angle = 2 * std::numbers::pi * words[pair + 1] / 4294967296.0;
                        const double want = std::sqrt(-2 * std::log(u)) *
                                            (w % 2 == 0 ? std::cos(angle) : std::sin(angle));
                        const float value =
                            got.view().as<float>()[got.view().offset({b, c, t - 4, h - 5, w - 6})];
                        worst = std::max(worst, std::abs(value - want));
                    }
    CAPTURE(worst);
    CHECK(worst < 2e-6);
}

TEST_CASE("any part drawn anywhere has the bits of the whole") {
    std::mt19937 generator(11);
    const box whole{{3, 5, 7}, {5, 6, 21}};
    const philox_noise source(99);
    const latent all = draw(source, whole, {1, 4}, 2, 3);
    index_t different = 0;
    for (int trial = 0; trial < 300; ++trial) {
        box part;
        for (std::size_t i = 0; i < 3; ++i) {
            part.origin[i] =
                static_cast<index_t>(generator() % static_cast<unsigned>(whole.extent[i]));
            part.extent[i] = static_cast<index_t>(
                generator() % static_cast<unsigned>(whole.extent[i] - part.origin[i] + 1));
            part.origin[i] += whole.origin[i];
        }
        // Into the middle of a larger latent, so that the target is strided.
        const auto [t, h, w] = part.extent;
        latent room({2, 3, t + 1, h + 2, w + 3});
        std::ranges::fill(room.elements<float>(), -100.0f);
        const latent_view target = subview(room.view(), {{1, 1, 2}, part.extent});
        source.fill(target, part, {1, 4});
        const const_latent_view expected = subview(all.view(), relative_to(part, whole.origin));
        index_t written = 0;
        for (index_t b = 0; b < 2; ++b)
            for (index_t c = 0; c < 3; ++c)
                for (index_t i = 0; i < t; ++i)
                    for (index_t j = 0; j < h; ++j)
                        for (index_t k = 0; k < w; ++k) {
                            const float got = target.as<float>()[target.offset({b, c, i, j, k})];
                            const float want =
                                expected.as<float>()[expected.offset({b, c, i, j, k})];
                            different += std::bit_cast<std::uint32_t>(got) !=
                                         std::bit_cast<std::uint32_t>(want);
                            ++written;
                        }
        const index_t left = std::ranges::count(room.elements<float>(), -100.0f);
        different += left + written != room.view().elements();
    }
    CHECK(different == 0);
}

TEST_CASE("coordinates up to the limits are told apart") {
    const philox_noise source(1);
    const index_t most = index_t{1} << 32;
    const latent low = draw(source, {{0, 0, 0}, {1, 1, 4}});
    const latent wide = draw(source, {{0, 0, most}, {1, 1, 4}});
    const latent end = draw(source, {{most - 1, most - 1, 4 * most - 4}, {1, 1, 4}});
    for (std::size_t i = 0; i < 4; ++i) {
        CHECK(low.elements<float>()[i] != wide.elements<float>()[i]);
        CHECK(low.elements<float>()[i] != end.elements<float>()[i]);
    }
}

TEST_CASE("values are standard normal") {
    const latent noise = draw(philox_noise(2024), box_of({10, 100, 200}), {}, 1, 1);
    std::vector<float> values(noise.elements<float>().begin(), noise.elements<float>().end());
    const auto n = static_cast<double>(values.size());
    std::array<double, 4> moments{};
    for (const float value : values) {
        double power = 1;
        for (double& moment : moments) moment += (power *= value) / n;
    }
    // Four standard deviations of each moment's estimate.
    CHECK(std::abs(moments[0]) < 4 / std::sqrt(n));
    CHECK(std::abs(moments[1] - 1) < 4 * std::sqrt(2 / n));
    CHECK(std::abs(moments[2]) < 4 * std::sqrt(15 / n));
    CHECK(std::abs(moments[3] - 3) < 4 * std::sqrt(96 / n));

    // Kolmogorov and Smirnov, at the one per cent level.
    std::ranges::sort(values);
    double distance = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
        const double below = 0.5 * std::erfc(-values[i] / std::sqrt(2.0));
        const auto rank = static_cast<double>(i);
        distance = std::max({distance, below - rank / n, (rank + 1) / n - below});
    }
    CHECK(distance * std::sqrt(n) < 1.63);
    CHECK(values.front() < -4);
    CHECK(values.back() > 4);
}

TEST_CASE("seeds, streams, steps, samples, channels and neighbours are independent") {
    const box where = box_of({4, 50, 100});
    const latent base = draw(philox_noise(7), where, {0, 0}, 2, 2);
    const auto values = base.elements<float>();
    const auto bound = [](std::size_t n) { return 4 / std::sqrt(static_cast<double>(n)); };

    const std::uint64_t high = std::uint64_t{1} << 32;
    for (const latent& other :
         {draw(philox_noise(8), where, {0, 0}, 2, 2),
          draw(philox_noise(7 + high), where, {0, 0}, 2, 2),
          draw(philox_noise(7), where, {1, 0}, 2, 2), draw(philox_noise(7), where, {high, 0}, 2, 2),
          draw(philox_noise(7), where, {0, 1}, 2, 2),
          draw(philox_noise(7), where, {0, -1}, 2, 2)}) {
        CHECK(std::abs(correlation(values, other.elements<float>())) < bound(values.size()));
    }
    // Samples and channels.
    const std::size_t channel = values.size() / 4;
    for (std::size_t i = 0; i < 4; ++i) {
        for (std::size_t j = 0; j < i; ++j) {
            CHECK(std::abs(correlation(values.subspan(i * channel, channel),
                                       values.subspan(j * channel, channel))) < bound(channel));
        }
    }
    // Neighbours along W (both of one pair, of one call, of two calls), H and T; sizes too.
    std::vector<float> squares;
    for (const float value : values) squares.push_back(value * value - 1);
    for (const std::size_t shift : {1, 2, 3, 4, 100, 5000}) {
        const std::size_t n = values.size() - shift;
        CHECK(std::abs(correlation(values.first(n), values.last(n))) < bound(n));
        const std::span<const float> sizes(squares);
        CHECK(std::abs(correlation(sizes.first(n), sizes.last(n))) < bound(n));
    }
}

TEST_CASE("sources of the same values have one fingerprint, and no others") {
    CHECK(philox_noise(7).fingerprint() == philox_noise(7).fingerprint());
    CHECK(philox_noise(7).fingerprint() != philox_noise(8).fingerprint());
}

TEST_CASE("noise refuses what it cannot draw") {
    const philox_noise source(1);
    latent out({1, 1, 2, 3, 4});
    const box where = box_of({2, 3, 4});
    CHECK_THROWS_AS(source.fill(out.view(), box_of({2, 3, 5}), {}), usage_error);
    CHECK_THROWS_WITH(source.fill(out.view(), box_of({2, 3, 5}), {}),
                      ContainsSubstring("[0,2)x[0,3)x[0,5)"));
    CHECK_THROWS_WITH(source.fill(out.view(), {{0, -1, 0}, {2, 3, 4}}, {}),
                      ContainsSubstring("along H"));
    CHECK_THROWS_WITH(source.fill(out.view(), {{(index_t{1} << 32) - 1, 0, 0}, {2, 3, 4}}, {}),
                      ContainsSubstring("along T"));
    latent half({1, 1, 2, 3, 4}, dtype::f16);
    CHECK_THROWS_WITH(source.fill(half.view(), where, {}), ContainsSubstring("f16"));
    auto on_device = out.view();
    on_device.space = memory_space::cuda;
    CHECK_THROWS_WITH(source.fill(on_device, where, {}), ContainsSubstring("cuda memory"));
    latent many({1, 65537, 0, 1, 1});
    CHECK_THROWS_WITH(source.fill(many.view(), box_of({0, 1, 1}), {}),
                      ContainsSubstring("65537 channels"));
}

// SPDX-License-Identifier: Apache-2.0
// Tests of examples/generate/palette.hpp.
#include <generate/palette.hpp>
#include <support/catch.hpp>

#include <cmath>

using media::palette;

namespace {

std::vector<std::uint8_t> gradient() {
    std::vector<std::uint8_t> out;
    for (int y = 0; y < 64; ++y) {
        for (int x = 0; x < 64; ++x) {
            out.push_back(static_cast<std::uint8_t>(4 * x));
            out.push_back(static_cast<std::uint8_t>(4 * y));
            out.push_back(static_cast<std::uint8_t>(128 + x - y));
        }
    }
    return out;
}

}  // namespace

TEST_CASE("a palette holds few colours exactly, close ones too") {
    const std::vector<std::uint8_t> pixels{10, 20, 30, 250, 0, 255, 14, 20, 30, 10, 20, 30};
    palette colors(pixels, 255);
    CHECK(colors.colors().size() == 3);
    CHECK(colors.error() == 0.0f);
    for (std::size_t i = 0; i < pixels.size(); i += 3) {
        const media::rgb wanted{float(pixels[i]), float(pixels[i + 1]), float(pixels[i + 2])};
        CHECK(colors.colors()[colors.nearest(wanted)] == wanted);
    }
}

TEST_CASE("one colour makes a palette of one") {
    const std::vector<std::uint8_t> pixels(3 * 50, 77);
    palette colors(pixels, 16);
    REQUIRE(colors.colors().size() == 1);
    CHECK(colors.colors()[0] == media::rgb{77, 77, 77});
    CHECK(colors.nearest({0, 255, 0}) == 0);
}

TEST_CASE("more colours come nearer to many pixels, as the stated error says") {
    const auto pixels = gradient();
    float before = 1e9f;
    for (const std::size_t size : {4u, 16u, 64u, 255u}) {
        palette colors(pixels, size);
        CHECK(colors.colors().size() == size);
        CHECK(colors.error() < 0.7f * before);
        before = colors.error();
        double squared = 0;
        for (std::size_t i = 0; i < pixels.size(); i += 3) {
            const media::rgb wanted{float(pixels[i]), float(pixels[i + 1]), float(pixels[i + 2])};
            const auto& found = colors.colors()[colors.nearest(wanted)];
            for (std::size_t c = 0; c < 3; ++c) squared += std::pow(found[c] - wanted[c], 2);
        }
        const auto measured = std::sqrt(squared / double(pixels.size()));
        // Within a bin of the histogram pixels differ by at most 3 in each channel.
        CHECK(std::abs(measured - double{colors.error()}) < 1.2);
    }
    // 255 equal squares of a plane of 256x256 have sides of 16: sqrt(2 * 16^2 / 12 / 3) = 3.8.
    CHECK(before < 4.2f);
}

TEST_CASE("colours out of range count as the nearest in range") {
    const std::vector<std::uint8_t> pixels{0, 0, 0, 255, 255, 255};
    palette colors(pixels, 2);
    CHECK(colors.nearest({-20, -1, -300}) == colors.nearest({0, 0, 0}));
    CHECK(colors.nearest({300, 256, 400}) == colors.nearest({255, 255, 255}));
}

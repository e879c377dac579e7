// SPDX-License-Identifier: Apache-2.0
// The ranges that a stitch is launched for.
#include "emulated.hpp"

#include <latpar/core/memory.hpp>

#include <support/catch.hpp>

using namespace latpar;
using namespace latpar::cuda::detail;

namespace {

/// Parts of `length` positions along T that begin `apart`.
struct part_row {
    part_row(std::size_t count, index_t length, index_t apart)
        : prediction({1, 1, length, 1, 1}), weights(static_cast<std::size_t>(length), 1.0f) {
        std::ranges::fill(prediction.elements<float>(), 1.0f);
        for (std::size_t k = 0; k < count; ++k) {
            parts.push_back({prediction.view(), static_cast<index_t>(k) * apart, weights});
        }
    }
    latent prediction;
    std::vector<float> weights;
    std::vector<kernel::stitch_part> parts;
};

}  // namespace

TEST_CASE("a range is as long as its parts and weights allow") {
    const part_row row(10, 8, 6);
    const auto range = [&](index_t begin, std::size_t parts, std::size_t weights) {
        return next_stitch_range(row.parts, 2, {begin, 62}, parts, weights).end;
    };
    CHECK(range(0, 10, 80) == 62);
    CHECK(range(0, 10, 79) == 61);
    CHECK(range(0, 9, 80) == 54);
    CHECK(range(0, 1, 80) == 6);
    CHECK(range(6, 1, 80) == 6);
    CHECK(range(8, 1, 80) == 12);
    CHECK(range(8, 1, 3) == 11);
}

TEST_CASE("a stitch and the step that it goes into are one launch") {
    int launches = 0;
    emulated_kernels kernels;
    kernels.launches = &launches;
    const std::array<index_t, 5> extents{1, 2, 21, 60, 8};
    latent prediction({1, 2, 21, 8, 8});
    std::ranges::fill(prediction.elements<float>(), 2.0f);
    const std::vector<float> weights(8, 0.5f);
    // Two of them cover each position, and make 2 of it.
    std::vector<kernel::stitch_part> parts;
    for (index_t k = 0; k < 16; ++k) parts.push_back({prediction.view(), 4 * k - 4, weights});
    std::vector<latent> tensors;
    std::vector<const_latent_view> inputs(1);
    std::vector<latent_view> outputs;
    for (int i = 0; i < 6; ++i) {
        std::ranges::fill(tensors.emplace_back(extents).elements<float>(), 1.0f);
        inputs.emplace_back(tensors.back().view());
        if (i < 4) outputs.push_back(tensors.back().view());
    }
    const std::vector<float> coefficients(7 * 4, 1.0f);
    kernels.stitch_combination({0, axis::h, dtype::bf16, parts}, inputs, coefficients, outputs);
    CHECK(launches == 1);
    for (std::size_t r = 0; r < 4; ++r) {
        CHECK(std::ranges::all_of(tensors[r].elements<float>(),
                                  [](float value) { return value == 8; }));
    }
}

TEST_CASE("small stitches are one launch, and any number of parts is served that do not all meet") {
    int launches = 0;
    emulated_kernels kernels;
    kernels.launches = &launches;
    const auto stitched = [&](const part_row& row, index_t length) {
        launches = 0;
        latent output({1, 1, length, 1, 1});
        kernels.stitch(output.view(), axis::t, row.parts);
        index_t sum = 0;
        for (const float value : output.elements<float>()) sum += static_cast<index_t>(value);
        return sum;
    };
    CHECK(stitched(part_row(16, 32, 30), 482) == 16 * 32);
    CHECK(launches == 1);
    CHECK(stitched(part_row(100, 32, 30), 3002) == 100 * 32);
    CHECK(launches == 1);
    CHECK(stitched(part_row(1000, 8, 6), 6002) == 1000 * 8);
    CHECK(launches == 8);
    CHECK(stitched(part_row(128, 3, 0), 3) == 128 * 3);
    CHECK_THROWS_WITH(stitched(part_row(129, 3, 0), 3),
                      ContainsSubstring("129 parts") && ContainsSubstring("at most 128"));
    // Nothing to cover with is no part at all: zeros, in one launch.
    CHECK(stitched(part_row(0, 3, 0), 5) == 0);
    CHECK(launches == 1);
}

// SPDX-License-Identifier: Apache-2.0
// Noise that the user brings: the right box of the right latent, or a clear refusal.
#include <latpar/core/memory.hpp>
#include <latpar/schedule/recorded_noise.hpp>

#include <support/catch.hpp>

#include <numeric>
#include <vector>

using namespace latpar;

namespace {

std::vector<float> counted(float first) {
    std::vector<float> out(2 * 3 * 4);
    std::iota(out.begin(), out.end(), first);
    return out;
}

const_latent_view view_of(const std::vector<float>& values) {
    return make_view(values.data(), std::array<index_t, 5>{1, 2, 1, 3, 4});
}

std::vector<float> draw(const recorded_noise& source, const box& where, noise_key key) {
    latent out({1, 2, where.extent[0], where.extent[1], where.extent[2]});
    source.fill(out.view(), where, key);
    return {out.elements<float>().begin(), out.elements<float>().end()};
}

}  // namespace

TEST_CASE("one recorded latent serves every key") {
    const auto values = counted(0);
    const recorded_noise source(view_of(values));
    const box where{{0, 1, 2}, {1, 2, 2}};
    const std::vector<float> expected{6, 7, 10, 11, 18, 19, 22, 23};
    CHECK(draw(source, where, {}) == expected);
    CHECK(draw(source, where, {3, 9}) == expected);
}

TEST_CASE("each key has its own latent") {
    const auto start = counted(0);
    const auto later = counted(100);
    const recorded_noise source({{{0, 0}, view_of(start)}, {{1, 5}, view_of(later)}});
    const box corner{{0, 0, 0}, {1, 1, 1}};
    CHECK(draw(source, corner, {0, 0}) == std::vector<float>{0, 12});
    CHECK(draw(source, corner, {1, 5}) == std::vector<float>{100, 112});
    CHECK_THROWS_AS(draw(source, corner, {1, 4}), usage_error);
    CHECK_THROWS_WITH(draw(source, corner, {1, 4}), ContainsSubstring("stream 1, step 4"));
}

TEST_CASE("recorded noise refuses what it has not") {
    const auto values = counted(0);
    const recorded_noise source(view_of(values));
    CHECK_THROWS_AS(draw(source, {{0, 0, 0}, {1, 3, 5}}, {}), usage_error);
    latent other({1, 3, 1, 3, 4});
    CHECK_THROWS_AS(source.fill(other.view(), box_of({1, 3, 4}), {}), usage_error);
    CHECK_THROWS_WITH(recorded_noise({{{1, 2}, view_of(values)}, {{1, 2}, view_of(values)}}),
                      ContainsSubstring("stream 1, step 2"));
}

// SPDX-License-Identifier: Apache-2.0
// The plain attention, by hand.
#include <latpar/layer/reference_attention.hpp>

#include <support/catch.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace latpar;

TEST_CASE("attention is the mean of values, weighted by the exponentials of scaled scores") {
    // One query, two keys, head_dim 4: scores 2 and 0 after the scale of 1/2.
    const std::vector<float> q{1, 1, 1, 1};
    const std::vector<float> k{1, 1, 1, 1, 0, 0, 0, 0};
    const std::vector<float> v{1, 2, 3, 4, 5, 6, 7, 8};
    std::vector<float> out(4);
    std::vector<float> lse(1);
    const std::array<index_t, 3> one{1, 1, 4};
    const std::array<index_t, 3> two{2, 1, 4};
    layer::reference_attention{}(make_view(q.data(), one), make_view(k.data(), two),
                                 make_view(v.data(), two), make_view(out.data(), one),
                                 make_view(lse.data(), std::array<index_t, 2>{1, 1}));
    const double weight = std::exp(2.0) / (std::exp(2.0) + 1);
    for (std::size_t d = 0; d < 4; ++d) {
        CHECK(std::abs(out[d] - (weight * v[d] + (1 - weight) * v[d + 4])) < 1e-6);
    }
    CHECK(std::abs(lse[0] - std::log(std::exp(2.0) + 1)) < 1e-6);
}

TEST_CASE("without a key the output is zero and the lse minus infinity") {
    const std::vector<float> q{1, 1};
    std::vector<float> out{9, 9};
    std::vector<float> lse{9};
    const std::array<index_t, 3> one{1, 1, 2};
    const std::array<index_t, 3> none{0, 1, 2};
    layer::reference_attention{}(make_view(q.data(), one), make_view(q.data(), none),
                                 make_view(q.data(), none), make_view(out.data(), one),
                                 make_view(lse.data(), std::array<index_t, 2>{1, 1}));
    CHECK(out == std::vector<float>{0, 0});
    CHECK(lse[0] == -std::numeric_limits<float>::infinity());
}

TEST_CASE("heads that do not fit are refused") {
    std::vector<float> x(24);
    const auto view = [&](index_t tokens, index_t heads, index_t dim) {
        return make_view(x.data(), std::array<index_t, 3>{tokens, heads, dim});
    };
    const layer::reference_attention attend;
    CHECK_THROWS_WITH(attend(view(2, 3, 4), view(2, 2, 4), view(2, 2, 4), view(2, 3, 4)),
                      ContainsSubstring("multiple of key heads"));
    CHECK_THROWS_AS(attend(view(2, 2, 4), view(2, 2, 2), view(2, 2, 2), view(2, 2, 4)),
                    usage_error);
    CHECK(layer::even_tokens(7, 3) == std::vector<index_t>{2, 2, 3});
    CHECK_THROWS_AS(layer::even_tokens(7, 0), usage_error);
}

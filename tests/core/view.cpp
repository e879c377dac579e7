// SPDX-License-Identifier: Apache-2.0
// Tests of core/view.hpp: strides, offsets, and sub-views against plain index arithmetic.
#include <latpar/core/view.hpp>

#include <support/catch.hpp>

#include <numeric>
#include <vector>

using namespace latpar;

TEST_CASE("dense strides are row-major") {
    static_assert(dense_strides<3>({2, 3, 4}) == std::array<index_t, 3>{12, 4, 1});
    static_assert(dense_strides<1>({7}) == std::array<index_t, 1>{1});
}

TEST_CASE("make_view describes a user's array") {
    std::vector<float> data(24);
    const auto view = make_view<float, 3>(data.data(), {2, 3, 4});
    CHECK(view.elements() == 24);
    CHECK(view.bytes() == 96);
    CHECK(view.type == dtype::f32);
    CHECK(view.space == memory_space::host);
    CHECK(view.is_contiguous());
    CHECK(view.as<float>() == data.data());
    CHECK(view.offset({1, 2, 3}) == 23);

    const std::vector<bfloat16> fixed(6);
    const auto read_only = make_view<const bfloat16, 2>(fixed.data(), {2, 3}, memory_space::cuda);
    static_assert(std::is_same_v<decltype(read_only), const basic_view<const std::byte, 2>>);
    CHECK(read_only.bytes() == 12);
    CHECK(read_only.space == memory_space::cuda);
    static_assert(std::is_same_v<decltype(read_only.as<bfloat16>()), const bfloat16*>);
}

TEST_CASE("a view is read only as what it holds") {
    std::vector<float> data(2);
    const auto view = make_view<float, 1>(data.data(), {2});
    CHECK_THROWS_AS(view.as<double>(), usage_error);
    CHECK_THROWS_WITH(view.as<float16>(), "a view of f32 was read as f16");
}

TEST_CASE("a mutable view converts to a read-only one, and not back") {
    std::vector<float> data(120);
    const latent_view view = make_view<float, 5>(data.data(), {1, 2, 3, 4, 5});
    const const_latent_view fixed = view;
    CHECK(fixed.data == view.data);
    CHECK(fixed.extents == view.extents);
    CHECK(fixed.strides == view.strides);
    static_assert(std::is_convertible_v<latent_view, const_latent_view>);
    static_assert(!std::is_convertible_v<const_latent_view, latent_view>);
}

TEST_CASE("contiguity looks at gaps, and ignores the strides of single extents") {
    latent_view view;
    view.extents = {1, 2, 3, 4, 5};
    view.strides = dense_strides(view.extents);
    CHECK(view.is_contiguous());
    view.strides[0] = 7;
    CHECK(view.is_contiguous());
    view.strides[1] = 61;
    CHECK_FALSE(view.is_contiguous());
    std::swap(view.strides[3], view.strides[4]);
    CHECK_FALSE(view.is_contiguous());
    view.extents[2] = 0;
    CHECK(view.is_contiguous());
    CHECK(view.elements() == 0);
}

TEST_CASE("subview reaches the same elements as plain indices, for every region and layout") {
    constexpr std::array<index_t, 5> extents{2, 3, 3, 2, 3};
    std::vector<float> data(512);
    std::iota(data.begin(), data.end(), 0.0f);
    auto view = make_view<float, 5>(data.data(), extents);
    SECTION("dense") {}
    SECTION("channels last") {
        view.strides = {54, 1, 18, 9, 3};
    }
    SECTION("padded") {
        view.strides = {200, 60, 16, 8, 2};
    }

    const auto check = [&](const box& region) {
        const auto part = subview(view, region);
        REQUIRE(spatial_extents(part) == region.extent);
        REQUIRE(part.strides == view.strides);
        for (index_t b = 0; b < 2; ++b) {
            for (index_t c = 0; c < 3; ++c) {
                for (index_t t = 0; t < region.extent[0]; ++t) {
                    for (index_t h = 0; h < region.extent[1]; ++h) {
                        for (index_t w = 0; w < region.extent[2]; ++w) {
                            const index_t whole =
                                view.offset({b, c, region.origin[0] + t, region.origin[1] + h,
                                             region.origin[2] + w});
                            if (part.as<float>()[part.offset({b, c, t, h, w})] !=
                                data[static_cast<std::size_t>(whole)]) {
                                return false;
                            }
                        }
                    }
                }
            }
        }
        return true;
    };
    for (index_t t = 0; t < 3; ++t) {
        for (index_t h = 0; h < 2; ++h) {
            for (index_t w = 0; w < 3; ++w) {
                for (index_t nt = 0; nt <= 3 - t; ++nt) {
                    for (index_t nh = 1; nh <= 2 - h; ++nh) {
                        for (index_t nw = 1; nw <= 3 - w; ++nw) {
                            const box region{{t, h, w}, {nt, nh, nw}};
                            CAPTURE(region);
                            REQUIRE(check(region));
                        }
                    }
                }
            }
        }
    }
}

TEST_CASE("subview counts bytes of the element type, and keeps constness") {
    const std::vector<float16> data(24);
    const auto view = make_view<const float16, 5>(data.data(), {1, 1, 2, 3, 4});
    const auto part = subview(view, {{1, 1, 1}, {1, 1, 1}});
    static_assert(std::is_same_v<decltype(part), const const_latent_view>);
    CHECK(part.as<float16>() == data.data() + 17);
    CHECK(part.type == dtype::f16);
}

TEST_CASE("subview refuses a region that reaches outside, naming both") {
    std::vector<float> data(24);
    const auto view = make_view<float, 5>(data.data(), {1, 1, 2, 3, 4});
    CHECK_THROWS_AS(subview(view, {{1, 0, 0}, {2, 3, 4}}), usage_error);
    CHECK_THROWS_AS(subview(view, {{0, -1, 0}, {1, 1, 1}}), usage_error);
    CHECK_THROWS_WITH(subview(view, {{0, 0, 3}, {2, 3, 2}}),
                      "region [0,2)x[0,3)x[3,5) does not lie within a latent of [0,2)x[0,3)x[0,4)");
}

// SPDX-License-Identifier: Apache-2.0
// Index arithmetic, parsing and refusals of mesh shapes; no communicator.
#include <latpar/comm/mesh_shape.hpp>
#include <latpar/core/error.hpp>

#include <support/catch.hpp>

#include <algorithm>
#include <set>

using namespace latpar;

TEST_CASE("axes stand in canonical order whatever the user writes") {
    const mesh_shape shape{{"ulysses", 2}, {"stage", 3}, {"latent", 4}};
    CHECK(to_string(shape) == "stage=3,latent=4,ulysses=2");
    CHECK(shape == mesh_shape{{"latent", 4}, {"ulysses", 2}, {"stage", 3}});
    CHECK(shape.size() == 24);
    CHECK(shape.degree("latent") == 4);
    CHECK(shape.degree("ring") == 1);
    CHECK(to_string(mesh_shape()) == "serial");
    CHECK(mesh_shape().size() == 1);
    std::vector<mesh_axis> all;
    for (std::size_t i = mesh_axes.size(); i-- > 0;) all.push_back({std::string(mesh_axes[i]), 1});
    CHECK(to_string(mesh_shape(all)) == "stage=1,step=1,guidance=1,latent=1,ring=1,ulysses=1");
}

TEST_CASE("the nearest axis has consecutive ranks, the farthest the widest apart") {
    const mesh_shape shape{{"step", 2}, {"latent", 3}, {"ulysses", 2}};
    CHECK(shape.ranks_along(0, "ulysses") == std::vector{0, 1});
    CHECK(shape.ranks_along(7, "ulysses") == std::vector{6, 7});
    CHECK(shape.ranks_along(7, "latent") == std::vector{7, 9, 11});
    CHECK(shape.ranks_along(7, "step") == std::vector{1, 7});
    CHECK(shape.ranks_along(7, "ring") == std::vector{7});
    CHECK(shape.coordinate(7, "step") == 1);
    CHECK(shape.coordinate(7, "latent") == 0);
    CHECK(shape.coordinate(11, "latent") == 2);
    CHECK(shape.coordinate(11, "guidance") == 0);
}

TEST_CASE("coordinates name each rank once, and its neighbours share all but one") {
    for (const mesh_shape& shape :
         {mesh_shape{{"stage", 2}, {"step", 3}, {"ring", 2}, {"ulysses", 4}}, mesh_shape(),
          mesh_shape{{"guidance", 2}, {"latent", 5}}}) {
        std::set<std::vector<int>> seen;
        for (int rank = 0; rank < shape.size(); ++rank) {
            std::vector<int> place;
            for (const auto axis : mesh_axes) place.push_back(shape.coordinate(rank, axis));
            seen.insert(place);
            for (std::size_t i = 0; i < mesh_axes.size(); ++i) {
                const std::vector<int> line = shape.ranks_along(rank, mesh_axes[i]);
                REQUIRE(static_cast<int>(line.size()) == shape.degree(mesh_axes[i]));
                for (std::size_t at = 0; at < line.size(); ++at) {
                    for (std::size_t j = 0; j < mesh_axes.size(); ++j) {
                        const int expected = i == j ? static_cast<int>(at) : place[j];
                        REQUIRE(shape.coordinate(line[at], mesh_axes[j]) == expected);
                    }
                }
            }
        }
        CHECK(static_cast<int>(seen.size()) == shape.size());
    }
}

TEST_CASE("a mesh is read from text, and malformed text is refused") {
    CHECK(mesh_shape::parse("latent=2,ulysses=4") == mesh_shape{{"latent", 2}, {"ulysses", 4}});
    CHECK(mesh_shape::parse("ulysses=4,latent=2") == mesh_shape{{"latent", 2}, {"ulysses", 4}});
    CHECK(mesh_shape::parse("") == mesh_shape());
    for (const char* text : {"latent", "latent=", "latent=x", "latent=2x", "latent=2,", "=2", ",",
                             "latent=2 ,ring=2", "latent= 2", "latent=99999999999", "latent:2"}) {
        INFO(text);
        CHECK_THROWS_AS(mesh_shape::parse(text), usage_error);
    }
    CHECK_THROWS_WITH(mesh_shape::parse("latent=two"), ContainsSubstring("latent=two"));
}

TEST_CASE("bad axes are refused by name and value") {
    CHECK_THROWS_WITH((mesh_shape{{"tensor", 2}}),
                      ContainsSubstring("tensor") && ContainsSubstring("stage step guidance"));
    CHECK_THROWS_WITH((mesh_shape{{"ring", 2}, {"latent", 2}, {"ring", 3}}),
                      ContainsSubstring("ring is named twice"));
    CHECK_THROWS_WITH((mesh_shape{{"ring", 0}}), ContainsSubstring("degree 0"));
    CHECK_THROWS_WITH(mesh_shape::parse("ring=-4"), ContainsSubstring("degree -4"));
    CHECK_THROWS_AS((mesh_shape{{"ring", 1 << 20}, {"step", 1 << 20}}), usage_error);
    CHECK_THROWS_AS(mesh_shape().degree("rings"), usage_error);
    CHECK_THROWS_AS(mesh_shape().coordinate(1, "ring"), usage_error);
    CHECK_THROWS_AS(mesh_shape().ranks_along(-1, "ring"), usage_error);
}

TEST_CASE("a mesh of another size is refused with one that fits") {
    CHECK_NOTHROW((mesh_shape{{"latent", 2}, {"ring", 3}}).require_size(6));
    CHECK_THROWS_WITH((mesh_shape{{"latent", 4}, {"ulysses", 2}}).require_size(12),
                      ContainsSubstring("latent=4,ulysses=2 has 8 ranks") &&
                          ContainsSubstring("there are 12") &&
                          ContainsSubstring("1, 2, 3, 4, 6, 12") &&
                          ContainsSubstring("for example latent=4,ulysses=3"));
    CHECK_THROWS_WITH((mesh_shape{{"latent", 4}}).require_size(7),
                      ContainsSubstring("1, 7") && ContainsSubstring("for example latent=7"));
    CHECK_THROWS_WITH(mesh_shape().require_size(3), ContainsSubstring("for example latent=3"));
}

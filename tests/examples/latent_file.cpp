// SPDX-License-Identifier: Apache-2.0
// Tests of examples/generate/latent_file.hpp: what came in parts is read back whole.
#include <latpar/core/memory.hpp>
#include <latpar/io/safetensors.hpp>

#include <generate/latent_file.hpp>
#include <support/catch.hpp>
#include <support/temporary.hpp>

#include <numeric>

using generate::latent_file;
using latpar::index_t;

namespace {

latpar::latent counted(const std::array<index_t, 5>& extents) {
    latpar::latent out(extents);
    const auto values = out.elements<float>();
    std::iota(values.begin(), values.end(), 1.0f);
    return out;
}

latpar::const_latent_view part(const latpar::latent& z, index_t first, index_t count) {
    return latpar::subview(z.view(),
                           {{first, 0, 0}, {count, z.view().extents[3], z.view().extents[4]}});
}

std::vector<float> values_of(const latpar::latent& z) {
    const auto values = z.elements<float>();
    return {values.begin(), values.end()};
}

index_t files_in(const std::filesystem::path& folder) {
    return std::distance(std::filesystem::directory_iterator(folder), {});
}

}  // namespace

TEST_CASE("a latent in parts is the tensor of the whole") {
    const temporary_directory folder;
    const latpar::latent z = counted({1, 3, 7, 2, 5});
    latent_file file(folder / "z.safetensors", {1, 3, 7, 2, 5}, {{"seed", "6"}});
    CHECK(files_in(folder / "") == 0);
    for (const auto& [first, count] : {std::pair(0, 3), std::pair(3, 3), std::pair(6, 1)}) {
        file.add(part(z, first, count));
        CHECK_FALSE(std::filesystem::exists(folder / "z.safetensors"));
    }
    file.close();
    CHECK(files_in(folder / "") == 1);
    const auto read = latpar::safetensors_file::open(folder / "z.safetensors");
    CHECK(read.at("latent").shape == std::vector<index_t>{1, 3, 7, 2, 5});
    CHECK(latpar::to_float32(read.at("latent")) == values_of(z));
    CHECK(read.metadata().at("seed") == "6");
}

TEST_CASE("a latent that ends early is as long as it came") {
    const temporary_directory folder;
    const latpar::latent z = counted({1, 3, 4, 2, 5});
    // Its numbers have more digits than those of what comes.
    latent_file file(folder / "z.safetensors", {1, 3, 123456, 2, 5}, {});
    file.add(part(z, 0, 3));
    file.add(part(z, 3, 1));
    file.close();
    const auto read = latpar::safetensors_file::open(folder / "z.safetensors");
    CHECK(read.at("latent").shape == std::vector<index_t>{1, 3, 4, 2, 5});
    CHECK(latpar::to_float32(read.at("latent")) == values_of(z));
}

TEST_CASE("a latent file that is not closed leaves nothing, and none without frames") {
    const temporary_directory folder;
    const latpar::latent z = counted({1, 2, 4, 2, 2});
    {
        latent_file file(folder / "z.safetensors", {1, 2, 8, 2, 2}, {});
        file.add(z.view());
        CHECK(files_in(folder / "") == 1);
    }
    CHECK(files_in(folder / "") == 0);
    latent_file(folder / "z.safetensors", {1, 2, 8, 2, 2}, {}).close();
    CHECK(files_in(folder / "") == 0);
}

TEST_CASE("frames that do not fit, and files that cannot be written, are refused") {
    const temporary_directory folder;
    const latpar::latent z = counted({1, 2, 4, 2, 2});
    latent_file file(folder / "z.safetensors", {1, 2, 5, 2, 2}, {});
    file.add(z.view());
    CHECK_THROWS_WITH(file.add(z.view()), ContainsSubstring("do not fit behind 4"));
    latent_file other(folder / "y.safetensors", {1, 3, 5, 2, 2}, {});
    CHECK_THROWS_AS(other.add(z.view()), latpar::usage_error);
    latent_file nowhere(folder / "none" / "z.safetensors", {1, 2, 5, 2, 2}, {});
    CHECK_THROWS_WITH(nowhere.add(z.view()), ContainsSubstring("z.safetensors cannot be written"));
    // Where a folder stands in the way of the name, nothing stays either.
    const temporary_directory other_folder;
    std::filesystem::create_directories(other_folder / "taken" / "by");
    {
        latent_file taken(other_folder / "taken", {1, 2, 4, 2, 2}, {});
        taken.add(z.view());
        CHECK_THROWS_AS(taken.close(), latpar::io_error);
    }
    CHECK(files_in(other_folder / "") == 1);
}

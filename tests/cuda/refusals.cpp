// SPDX-License-Identifier: Apache-2.0
// What cuda::kernels and its kin refuse before any device is asked for it.
#include <latpar/cuda/count_non_finite.hpp>
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/philox_noise.hpp>
#include <latpar/cuda/stream.hpp>

#include <support/catch.hpp>

#include <vector>

using namespace latpar;

TEST_CASE("cuda kernels refuse host memory, and a stitch of too many parts") {
    latent a({1, 2, 3, 4, 5});
    latent b({1, 2, 3, 4, 5});
    const cuda::kernels kernels;
    CHECK(kernels.space() == memory_space::cuda);
    CHECK_THROWS_AS(kernels.copy(a.view(), b.view()), usage_error);
    CHECK_THROWS_WITH(kernels.copy(a.view(), b.view()),
                      ContainsSubstring("host memory") && ContainsSubstring("cuda memory"));
    CHECK_THROWS_WITH(kernels.round(a.view(), dtype::bf16), ContainsSubstring("cuda memory"));
    const auto on_device = [](latent_view view) {
        view.space = memory_space::cuda;
        return view;
    };
    const std::vector<float> weights(3, 1.0f);
    const std::vector<kernel::stitch_part> parts(129, {on_device(b.view()), 0, weights});
    CHECK_THROWS_WITH(kernels.stitch(on_device(a.view()), axis::t, parts),
                      ContainsSubstring("129 parts"));
}

TEST_CASE("device noise refuses what the host's does, and host memory") {
    const cuda::philox_noise source(1);
    latent out({1, 1, 2, 3, 4});
    const box where = box_of({2, 3, 4});
    CHECK_THROWS_WITH(source.fill(out.view(), where, {}), ContainsSubstring("host memory"));
    auto there = out.view();
    there.space = memory_space::cuda;
    CHECK_THROWS_WITH(source.fill(there, box_of({2, 3, 5}), {}),
                      ContainsSubstring("[0,2)x[0,3)x[0,5)"));
    CHECK_THROWS_WITH(source.fill(there, {{0, -1, 0}, {2, 3, 4}}, {}),
                      ContainsSubstring("along H"));
    CHECK(source.fingerprint() == philox_noise(1).fingerprint());
    CHECK(source.fingerprint() != philox_noise(2).fingerprint());
}

TEST_CASE("a device count refuses host memory and a counter that is none") {
    latent values({1, 1, 2, 3, 4});
    alignas(8) std::array<std::byte, 16> memory{};
    auto* const counter = reinterpret_cast<std::uint64_t*>(memory.data());
    CHECK_THROWS_WITH(cuda::count_non_finite(values.view(), counter),
                      ContainsSubstring("host memory"));
    auto there = values.view();
    there.space = memory_space::cuda;
    CHECK_THROWS_WITH(cuda::count_non_finite(there, nullptr), ContainsSubstring("64 bits"));
    CHECK_THROWS_WITH(
        cuda::count_non_finite(there, reinterpret_cast<std::uint64_t*>(memory.data() + 4)),
        ContainsSubstring("multiple of 8"));
}

TEST_CASE("without a device nothing pretends that there is one") {
    if (cuda::device_count() > 0) {
        SUCCEED("there is a device");
        return;
    }
    CHECK_THROWS_AS(cuda::stream(), device_error);
    CHECK_THROWS_AS(cuda::current_device(), device_error);
    CHECK_THROWS_WITH(cuda::device_memory(0).allocate(16), ContainsSubstring("failed: "));
}

TEST_CASE("a device that is not there is refused, with those that are") {
    CHECK_THROWS_AS(cuda::set_device(-1), device_error);
    CHECK_THROWS_WITH(cuda::set_device(-1),
                      ContainsSubstring("device -1 was to be made current, and there "));
}

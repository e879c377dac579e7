// SPDX-License-Identifier: Apache-2.0
// cuda::philox_noise and what is made of it, against the host's.
#include "device_lab.hpp"
#include "noise_cases.hpp"

#include <latpar/cuda/philox_noise.hpp>

using namespace latpar;

namespace {

auto device_fill(const device_lab& lab) {
    return [&lab](std::uint64_t seed, latent_view out, const box& where, noise_key key) {
        cuda::philox_noise(seed).fill(out, where, key, lab.stream());
    };
}

}  // namespace

TEST_CASE("device noise has the bits of the host, wherever it lies and whatever it is for") {
    device_lab lab;
    noise_cases::check_noise(lab, device_fill(lab));
    noise_cases::check_much_noise(lab, device_fill(lab));
}

TEST_CASE("coordinated noise of a device has the bits of the host's") {
    device_lab lab;
    const cuda::coordinated_noise on_device(9, 6, 2);
    const coordinated_noise on_host(9, 6, 2);
    for (const index_t block : {0, 1, 2, 17}) {
        CHECK(on_device.frames_of(block) == on_host.frames_of(block));
        const std::array<index_t, 5> extents{
            1, 3, static_cast<index_t>(on_host.frames_of(block).size()), 5, 7};
        latent there(extents, dtype::f32, lab.memory());
        latent expected(extents);
        on_device(block, there.view(), lab.stream());
        on_host(block, expected.view());
        std::vector<float> got(expected.elements<float>().size());
        lab.download(std::as_writable_bytes(std::span(got)), there.view().data);
        CHECK(std::memcmp(got.data(), expected.view().data, got.size() * 4) == 0);
    }
}

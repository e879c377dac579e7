// SPDX-License-Identifier: Apache-2.0
// The kernels for CUDA memory, by way of the installed package and the host's compiler.
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>

#include <array>
#include <iostream>

/// Doubles a tensor on the device.
bool doubles() {
    const latpar::cuda::stream stream;
    latpar::cuda::device_memory memory;
    latpar::latent values({1, 1, 1, 1, 3}, latpar::dtype::f32, memory.source());
    std::array<float, 3> here{1, 2, 3};
    latpar::cuda::copy_bytes(values.view().data, here.data(), sizeof(here), stream);
    const latpar::const_latent_view input = values.view();
    const latpar::latent_view output = values.view();
    const std::array<float, 1> two{2};
    latpar::cuda::kernels{}.linear_combination({&input, 1}, two, {&output, 1}, stream);
    latpar::cuda::copy_bytes(here.data(), values.view().data, sizeof(here), stream);
    return here == std::array<float, 3>{2, 4, 6};
}

int main() {
    if (latpar::cuda::device_count() == 0) {
        std::cout << "linked, but there is no CUDA device to run on\n";
        return 0;
    }
    return doubles() ? 0 : 1;
}

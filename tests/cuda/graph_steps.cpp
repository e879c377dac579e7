// SPDX-License-Identifier: Apache-2.0
// Denoising steps that are captured once and replayed for all others.
#include <latpar/cuda/philox_noise.hpp>
#include <latpar/loop/serial.hpp>

#include <cuda/captured_graph.hpp>
#include <cuda/device_lab.hpp>
#include <support/catch.hpp>

using namespace latpar;

namespace {

constexpr std::array<index_t, 5> extents{1, 3, 5, 6, 7};

/// The latent after so many steps, one call after the other.
std::vector<float> eager(const linear_scheduler& schedule, index_t steps) {
    const cuda::stream stream;
    cuda::device_memory device;
    timestep_model model;
    loop::serial loop(model, schedule, extents, cuda::kernels{}, dtype::f32, device.source());
    loop.start(cuda::philox_noise(5), stream);
    while (loop.step() < steps) {
        const auto next = loop.next_request(stream.ref());
        model(next.z, next.info, next.prediction, stream);
        loop.advance(stream.ref());
    }
    return content_of(loop, extents, stream);
}

}  // namespace

TEST_CASE("one graph makes every step of a schedule, to the bit") {
    const linear_scheduler schedule = swinging_schedule(120);
    const cuda::stream stream;
    cuda::device_memory device;
    cuda::step_scalars scalars(schedule, device.source());
    timestep_model model{scalars.timesteps()};
    loop::serial loop(model, scalars.schedule(), extents, cuda::kernels{}, dtype::f32,
                      device.source());
    loop.start(cuda::philox_noise(5), stream);
    const captured_graph graph(stream, [&] {
        scalars.advance(stream);
        const auto next = loop.next_request(stream.ref());
        model(next.z, next.info, next.prediction, stream);
        loop.advance(stream.ref());
    });
    for (index_t i = 1; i <= 100; ++i) {
        graph.replay();
        if (i == 1 || i == 7 || i == 100) {
            CAPTURE(i);
            CHECK(content_of(loop, extents, stream) == eager(schedule, i));
        }
    }
    // Again from a step of choice.
    loop.start(cuda::philox_noise(5), stream);
    scalars.set(0, stream);
    for (int i = 0; i < 3; ++i) graph.replay();
    CHECK(content_of(loop, extents, stream) == eager(schedule, 3));
}

TEST_CASE("numbers of steps are refused that a graph cannot have") {
    cuda::device_memory device;
    const linear_scheduler schedule = swinging_schedule(10);
    CHECK_THROWS_AS(cuda::step_scalars(schedule, memory_source{}), usage_error);
    CHECK_THROWS_AS(cuda::step_scalars(schedule, device.source(), 0), usage_error);
    CHECK_THROWS_AS(cuda::step_scalars(schedule, device.source(), 1, 1, 10), usage_error);
    cuda::step_scalars scalars(schedule, device.source(), 3, 2, 1);
    CHECK_THROWS_AS(scalars.timesteps(3), usage_error);
    CHECK_THROWS_AS(scalars.set(0, {}), usage_error);
    CHECK_THROWS_AS(scalars.set(5, {}), usage_error);
    CHECK_NOTHROW(scalars.set(7, {}));
}

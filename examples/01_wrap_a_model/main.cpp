// SPDX-License-Identifier: Apache-2.0
// Your own model, four ranks: what it takes to sample with LatentParallel.
#include <latpar/latpar.hpp>

#include <cmath>
#include <iostream>

/// Stands for an engine with raw pointers: predicts a velocity that pulls the latent to a pattern.
struct my_engine {
    float guidance_word = 1;

    void predict(const float* z, double timestep, bool conditional,
                 const std::array<latpar::index_t, 5>& shape, float* out) const {
        const auto sigma = static_cast<float>(timestep / 1000);
        const latpar::index_t row = shape[4];
        const latpar::index_t count = shape[0] * shape[1] * shape[2] * shape[3] * row;
        for (latpar::index_t i = 0; i < count; ++i) {
            const float neighbour = z[i % row == 0 ? i : i - 1];
            const float target = conditional ? std::tanh(guidance_word * neighbour) : 0.0f;
            out[i] = (z[i] - target) / (sigma + 0.1f);
        }
    }
};

int main() try {
    constexpr std::array<latpar::index_t, 5> extents{1, 16, 13, 60, 104};  // [B, C, T, H, W]
    const auto schedule = latpar::schedule::euler_flow({.steps = 20});
    const auto problem = latpar::latent_problem::of(extents, schedule);
    const latpar::latent_parallel_plan plan = latpar::plan_latent_parallel(problem, {}, 4);
    std::cout << to_table(plan);

    latpar::latent video(extents);
    latpar::thread_team(4).run([&](latpar::thread_communicator& comm) {
        my_engine engine;  // each rank has its own; on GPUs, one a device
        auto model = [&](latpar::const_latent_view z, const latpar::step_info& info,
                         latpar::latent_view prediction, latpar::stream_ref) {
            const latpar::sample_info& now = info.samples[0];
            engine.predict(z.as<float>(), now.timestep,
                           now.branch == latpar::guidance_branch::conditional, z.extents,
                           prediction.as<float>());
        };
        latpar::latent_parallel denoiser(latpar::guided(model, 4.0), comm, plan);
        latpar::loop::serial loop(denoiser, schedule, extents);
        const latpar::philox_noise noise(42);
        loop.start(noise);
        loop.run(noise);
        latpar::latent mine(extents);
        loop.collect(mine.view());
        if (comm.rank() == 0) video = std::move(mine);
    });
    double sum = 0;
    for (const float x : video.elements<float>()) sum += static_cast<double>(x) * x;
    std::cout << "\nmean square of the result: "
              << sum / static_cast<double>(video.view().elements()) << '\n';
    return 0;
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}

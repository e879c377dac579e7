// SPDX-License-Identifier: Apache-2.0
// Three policies around your own model, on a mesh of eight ranks: steps, guidance branches and
// parts of the latent at once.
#include <latpar/latpar.hpp>

#include <algorithm>
#include <cmath>
#include <iostream>

namespace {

constexpr std::array<latpar::index_t, 5> extents{1, 16, 9, 32, 48};  // [B, C, T, H, W]

/// Stands for a model that predicts one branch of guidance: a velocity towards a pattern that
/// depends on what lies to the left.
constexpr auto predict = [](latpar::const_latent_view z, const latpar::step_info& info,
                            latpar::latent_view prediction, latpar::stream_ref) {
    const latpar::sample_info& now = info.samples[0];
    const bool conditional = now.branch == latpar::guidance_branch::conditional;
    const auto sigma = static_cast<float>(now.sigma);
    const float* in = z.as<float>();
    float* out = prediction.as<float>();
    for (latpar::index_t i = 0; i < z.elements(); ++i) {
        const float left = in[i % z.extents[4] == 0 ? i : i - 1];
        const float target = conditional ? std::tanh(1.5f * left) : 0.0f;
        out[i] = (in[i] - target) / (sigma + 0.1f);
    }
};

latpar::composition_options options() {
    latpar::composition_options out;
    out.guidance.rule = latpar::guidance_rule::classifier_free(4.0);
    out.step.warm_up = 4;
    out.latent.overlap = 0.5;
    out.result_everywhere = false;
    return out;
}

/// Runs a loop to its end; the rank that gets the result returns it.
template <class Loop>
latpar::latent sample(Loop& loop, bool gets_result) {
    const latpar::philox_noise noise(42);
    loop.start(noise);
    loop.run(noise);
    latpar::latent out;
    if (gets_result) out = latpar::latent(extents);
    loop.collect(out.view());
    return out;
}

}  // namespace

int main() try {
    const auto schedule = latpar::schedule::unipc_flow({.steps = 20});
    const auto problem = latpar::latent_problem::of(extents, schedule);
    const latpar::mesh_shape shape{{"step", 2}, {"guidance", 2}, {"latent", 2}};
    const auto plan = latpar::plan_composition(problem, shape, options());
    std::cout << to_table(plan);

    latpar::latent video;
    latpar::thread_team(shape.size()).run([&](latpar::thread_communicator& world) {
        latpar::mesh axes(world, shape);
        const int rank = world.rank();
        // Each policy talks along its axis, and is again a model for the one around it.
        latpar::latent_parallel parts(predict, axes.axis("latent"), plan.latent);
        latpar::guidance_parallel guided(std::move(parts), axes.axis("guidance"),
                                         plan.guidance_of(rank));
        latpar::loop::para_step loop(guided, axes.axis("step"), schedule, plan.step_of(rank));
        latpar::latent mine = sample(loop, rank == 0);
        if (rank == 0) video = std::move(mine);
    });

    // One rank makes all the calls in turn; composition writes the nest out.
    auto simulating = options();
    simulating.simulate = true;
    latpar::self_communicator alone;
    latpar::mesh axis(alone, latpar::mesh_shape{});
    latpar::composition loop(predict, axis, schedule,
                             latpar::plan_composition(problem, shape, simulating));
    const latpar::latent expected = sample(loop, true);

    const auto bits = [](const latpar::latent& z) { return std::as_bytes(z.elements<float>()); };
    const bool equal = std::ranges::equal(bits(video), bits(expected));
    std::cout << "\neight ranks and their simulation on one "
              << (equal ? "agree in every bit\n" : "differ\n");
    return equal ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}

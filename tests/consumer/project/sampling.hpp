// SPDX-License-Identifier: Apache-2.0
// A lambda as the model, sampled by the ranks of any communicator.
#pragma once

#include <latpar/latpar.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

/// Samples a small latent with LatentParallel on the ranks of `comm`.
///
/// Returns whether every rank got, to the bit, what one rank gets that runs all parts in turn.
template <latpar::communicator Communicator>
bool sample_and_compare(Communicator& comm) {
    constexpr std::array<latpar::index_t, 5> extents{1, 2, 4, 8, 8};
    // A model whose prediction depends on the noise level and on neighbours along W.
    const auto model = [](latpar::const_latent_view z, const latpar::step_info& info,
                          latpar::latent_view prediction, latpar::stream_ref) {
        const float* const in = z.as<float>();
        float* const out = prediction.as<float>();
        const auto level = static_cast<float>(info.samples[0].sigma);
        const auto [b, c, t, h, w] = z.extents;
        std::array<latpar::index_t, 5> at{};
        for (at[1] = 0; at[1] < c; ++at[1]) {
            for (at[2] = 0; at[2] < t; ++at[2]) {
                for (at[3] = 0; at[3] < h; ++at[3]) {
                    for (at[4] = 0; at[4] < w; ++at[4]) {
                        auto left = at;
                        left[4] = std::max<latpar::index_t>(at[4] - 1, 0);
                        out[prediction.offset(at)] =
                            std::tanh(in[z.offset(at)] + 0.5f * level * in[z.offset(left)]);
                    }
                }
            }
        }
    };
    const auto schedule = latpar::schedule::euler_flow({.steps = 4});
    const auto problem = latpar::latent_problem::of(extents, schedule);
    const auto sample = [&](auto& ranks, int parts) {
        latpar::latent_parallel_options options;
        options.parts = parts;
        latpar::latent_parallel denoiser(
            model, ranks, latpar::plan_latent_parallel(problem, options, ranks.size()));
        latpar::loop::serial loop(denoiser, schedule, extents);
        const latpar::philox_noise noise(7);
        loop.start(noise);
        loop.run(noise);
        latpar::latent result(extents);
        loop.collect(result.view());
        return result;
    };

    latpar::self_communicator alone;
    const latpar::latent expected = sample(alone, comm.size());
    const latpar::latent found = sample(comm, 0);
    const auto same =
        std::ranges::equal(expected.template elements<float>(), found.template elements<float>());
    return latpar::all_reduce(comm, same ? 1 : 0, latpar::reduce_op::min) == 1;
}

// SPDX-License-Identifier: Apache-2.0
// The recorded runs of LatentParallel around the tiny Wan model, on any communicator.
#pragma once

#include <latpar/schedule/euler_flow.hpp>
#include <latpar/step/guided.hpp>

#include <support/latent_parallel_run.hpp>
#include <support/recorded.hpp>
#include <support/reference.hpp>
#include <wan/transformer.hpp>

#include <string>

struct recorded_run {
    int parts;
    double overlap;
    std::string key;
};

inline const std::vector<recorded_run> recorded_runs{{1, 0.0, "k1.r0.0"}, {2, 0.5, "k2.r0.5"},
                                                     {4, 0.5, "k4.r0.5"}, {4, 1.0, "k4.r1.0"},
                                                     {3, 0.0, "k3.r0.0"}, {3, 2.0, "k3.r2.0"}};

/// The recordings and the model that they were made with.
class recorded_latent_parallel {
public:
    recorded_latent_parallel()
        : file_(latpar::safetensors_file::open(reference_file("latent_parallel.safetensors"))),
          weights_(wan::load_weights(reference_file("wan_tiny.safetensors"))) {}

    /// An instance of the guided model; ranks share the weights.
    [[nodiscard]] any_model model() const {
        auto exec = std::make_shared<wan::executor>(wan::executor_options{.threads = 1});
        wan::transformer<> instance(weights_, std::move(exec));
        instance.set_text(latpar::guidance_branch::conditional,
                          latpar::to_float32(file_.at("text")));
        instance.set_text(latpar::guidance_branch::unconditional,
                          latpar::to_float32(file_.at("negative_text")));
        auto held = std::make_shared<latpar::guided<wan::transformer<>>>(std::move(instance), 4.0);
        return [held](latpar::const_latent_view z, const latpar::step_info& info,
                      latpar::latent_view p, latpar::stream_ref s) { (*held)(z, info, p, s); };
    }

    [[nodiscard]] sampling_case initial() const {
        const auto z = recorded_latent(file_, "initial");
        const auto values = z.elements<float>();
        return {z.view().extents, latpar::schedule::euler_flow({.steps = 7}), 0,
                std::vector<float>(values.begin(), values.end())};
    }

    [[nodiscard]] latpar::latent_parallel_plan plan(const recorded_run& run,
                                                    latpar::latent_layout layout, int ranks) const {
        latpar::latent_parallel_options options;
        options.cores = latpar::partition::paper;
        options.overlap = run.overlap;
        options.layout = layout;
        options.parts = run.parts;
        return latpar::plan_latent_parallel(initial().problem(), options, ranks);
    }

    /// Distance of a result after `steps` steps, or of the final one with -1, from the recording.
    [[nodiscard]] double distance(const recorded_run& run, latpar::index_t steps,
                                  std::span<const float> result) const {
        const std::string what = steps < 0 ? ".final" : ".after_step_" + std::to_string(steps - 1);
        return relative_l2(result, latpar::to_float32(file_.at(run.key + what)));
    }

private:
    latpar::safetensors_file file_;
    std::shared_ptr<const wan::weights> weights_;
};

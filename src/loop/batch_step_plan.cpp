// SPDX-License-Identifier: Apache-2.0
// BatchStep, planned.
#include <latpar/loop/batch_step_plan.hpp>

#include <schedule/check_problem.hpp>

#include <algorithm>

namespace latpar::inline v0::loop {

using latpar::detail::require;

batch_step_plan plan_batch_step(const latent_problem& problem, batch_step_options options) {
    require(options.degree >= 1 && options.degree <= 1024, "batches of ", options.degree,
            " steps were asked for; use 1 to 1024");
    latpar::detail::check_problem(problem, options.degree);
    require(options.warm_up >= 1 && options.warm_up <= problem.steps, "a warm-up of ",
            options.warm_up, " steps was asked for; use 1 to ", problem.steps,
            ", the steps of the schedule");
    require(options.reuse != reuse::own,
            "reuse own is each rank's own prediction, and BatchStep has one rank; use newest or "
            "extrapolated");
    require(problem.channels == problem.prediction_channels, "a prediction of ",
            problem.prediction_channels, " channels cannot step a latent of ", problem.channels,
            "; use a model that predicts as many");
    if (!options.held) options.held = box_of(problem.extents);
    require(contains(box_of(problem.extents), *options.held), "the held box ", *options.held,
            " does not lie within the latent ", box_of(problem.extents));

    batch_step_plan plan{problem, options, {}};
    for (index_t i = options.warm_up; i < problem.steps;) {
        index_t count = std::min<index_t>(options.degree, problem.steps - i);
        // The last step leads a batch of its own rather than being one of the predicted ones.
        if (!options.predict_last && i + count == problem.steps && count > 1) --count;
        plan.rounds.push_back({i, count});
        i += count;
    }
    return plan;
}

int batch_step_plan::kept_predictions() const noexcept {
    if (options.degree == 1 || rounds.empty()) return 0;
    return options.reuse == reuse::newest ? 1 : 2;
}

index_t batch_step_plan::critical_path_calls() const {
    return options.warm_up + static_cast<index_t>(rounds.size());
}

index_t batch_step_plan::workspace_bytes() const {
    const index_t block =
        problem.batch * problem.channels * options.held->volume() * size_of(problem.type);
    const index_t state = 1 + problem.history_size();
    const index_t noise = problem.noise_bytes(options.held->volume());
    if (rounds.empty() || options.degree == 1) return (state + 1) * block + noise;
    return (2 * state + 2 * options.degree + kept_predictions()) * block + noise;
}

std::string batch_step_plan::run_fingerprint() const {
    return latpar::detail::concat("batch_step ", problem.fingerprint(), " degree=", options.degree,
                                  " warm-up=", options.warm_up, ' ', name_of(options.reuse),
                                  " predict-last=", options.predict_last);
}

}  // namespace latpar::inline v0::loop

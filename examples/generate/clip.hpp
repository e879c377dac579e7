// SPDX-License-Identifier: Apache-2.0
// One rank's share of a clip.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/compose/composition.hpp>
#include <latpar/loop/batch_step.hpp>

#include <generate/guided_model.hpp>
#include <generate/progress.hpp>
#include <generate/rank.hpp>
#include <generate/run.hpp>
#include <wan/sequence_parallel.hpp>

#include <chrono>
#include <optional>
#include <utility>

namespace generate {

/// Calls of the model by this rank, and the seconds that all ranks took.
struct clip_share {
    latpar::index_t model_calls = 0;
    double seconds = 0;
};

/// Runs a loop to its end; collects into `out`, which may be empty on ranks that get no result.
///
/// Ranks: all of `world`. Returns the seconds until all are done; nothing if the user stopped it.
template <class Place, class Loop>
[[nodiscard]] std::optional<double> run_loop(Place& here, latpar::any_communicator& world,
                                             Loop& loop, const job& j, const watch& by,
                                             latpar::latent_view out) {
    const typename Place::noise noise(j.options.seed);
    here.synchronize();
    static_cast<void>(world.control_all_gather({}));  // start the clock together
    const auto start = std::chrono::steady_clock::now();
    loop.start(noise, here.stream());
    progress told(by.label, loop.steps(), by.silent);
    const auto on_step = [&](latpar::index_t step) {
        if (!by.silent) here.synchronize();  // what is told is done
        told.update(step + 1);
        return !by.stop_requested();
    };
    if (!loop.run(noise, on_step, here.stream())) return std::nullopt;
    loop.collect(out, here.stream());
    here.synchronize();
    static_cast<void>(world.control_all_gather({}));
    return seconds_since(start);
}

/// Samples as planned, on all ranks of the mesh; nothing if the user stopped it.
template <class Place>
[[nodiscard]] std::optional<clip_share> sample_clip(
    Place& here, latpar::any_communicator& world, latpar::mesh<communicator>& ranks, const job& j,
    const std::shared_ptr<const typename Place::trunk::weights>& weights, const run_plan& plan,
    const watch& by, latpar::latent_view out) {
    using kernels = typename Place::kernels;
    using local = local_attention_of<Place>;
    const auto exec = here.executor();
    std::optional<double> seconds;
    latpar::index_t model_calls = 0;
    if (plan.batches) {
        basic_guided_model<local, Place> model(j, weights, exec);
        latpar::loop::batch_step loop(model, j.schedule, *plan.batches, kernels{}, here.memory());
        seconds = run_loop(here, world, loop, j, by, out);
        model_calls = model.branch_calls();
    } else {
        // Without axes ulysses and ring its attention is that of one rank.
        using attention = wan::sequence_parallel<communicator, local, kernels>;
        latpar::composition nest(
            basic_guided_model<attention, Place>(
                j, weights, exec,
                attention(j.weights->config, exec, ranks.axis("ulysses"), ranks.axis("ring"))),
            ranks, j.schedule, plan.nest, kernels{}, here.memory());
        seconds = run_loop(here, world, nest, j, by, out);
        model_calls = nest.model().branch_calls();
    }
    if (!seconds) return std::nullopt;
    return clip_share{model_calls, *seconds};
}

/// The same clip on one rank, in host memory, for the report; nothing if the user stopped it.
template <class Place>
[[nodiscard]] std::optional<latpar::latent> sample_clip_alone(Place& here, const job& j,
                                                              const watch& by, report& figures) {
    latpar::any_communicator one{latpar::self_communicator()};
    auto place = here.alone(one);
    const auto weights = place.weights(j.weights);
    latpar::latent out(j.extents, latpar::dtype::f32, place.memory());
    basic_guided_model<local_attention_of<Place>, Place> model(j, weights, place.executor());
    latpar::loop::serial loop(model, j.schedule, j.extents, typename Place::kernels{},
                              latpar::dtype::f32, place.memory());
    figures.serial_wall_seconds = run_loop(place, one, loop, j, by, out.view());
    if (!figures.serial_wall_seconds) return std::nullopt;
    figures.serial_peak_bytes = place.peak_bytes() + weights->storage.bytes();
    return place.to_host(std::as_const(out).view());
}

/// Enters what was asked for, the plan and what the ranks metered.
///
/// Ranks: all. Errors: error if that is not what was planned.
void describe_clip(latpar::any_communicator& world, latpar::mesh<communicator>& mesh, const job& j,
                   const run_plan& plan, const clip_share& share, report& figures);

/// Samples a clip, compares it if it is to be compared, and writes it.
///
/// Ranks: all of `world`, with one answer.
template <class Place>
[[nodiscard]] ending make_clip(Place& here, latpar::any_communicator& world, const job& j,
                               const surroundings& around, report& figures) {
    const run_plan plan = j.plan();
    const bool is_first = world.rank() == 0;
    const bool is_silent = !is_first || j.options.quiet;
    auto mesh = here.mesh_of(plan.nest.shape);
    latpar::latent result;
    if (is_first) result = latpar::latent(j.extents, latpar::dtype::f32, here.memory());
    const auto weights = here.weights(j.weights);
    const auto share = sample_clip(here, world, mesh, j, weights, plan,
                                   {"sampling", is_silent, around.stop_requested}, result.view());
    if (!share) return ending::stopped;
    describe_clip(world, mesh, j, plan, *share, figures);
    here.describe(figures);
    figures.peak_bytes = from_all(world, here.peak_bytes() + weights->storage.bytes());

    bool finished = true;
    if (is_first) {
        const latpar::latent sampled = here.to_host(std::as_const(result).view());
        std::optional<latpar::latent> serial;
        if (j.options.compare_serial) {
            serial =
                sample_clip_alone(here, j, {"one rank", is_silent, around.stop_requested}, figures);
            finished = serial.has_value();
        }
        if (serial) {
            const likeness alike = compare(j, sampled.view(), std::as_const(*serial).view());
            figures.psnr_db = alike.psnr_db;
            figures.relative_error = alike.relative_error;
        }
        if (finished) {
            const auto alone = serial ? std::as_const(*serial).view() : latpar::const_latent_view{};
            write_outputs(j, sampled.view(), serial ? &alone : nullptr);
            for (const auto& path : j.options.outputs) figures.written.push_back(path.string());
        }
    }
    // The others wait here, so that no rank ends while rank 0 still works.
    return latpar::any_rank(world, !finished) ? ending::stopped : ending::complete;
}

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// One rank's share of a job.
#include <latpar/comm/agreement.hpp>
#include <latpar/compose/composition.hpp>
#include <latpar/loop/batch_step.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <generate/guided_model.hpp>
#include <generate/long_video.hpp>
#include <generate/progress.hpp>
#include <generate/rank.hpp>
#include <generate/run.hpp>
#include <wan/sequence_parallel.hpp>

#include <chrono>

namespace generate {
namespace {

using latpar::index_t;
using latpar::memory_source;
using latpar::memory_space;

/// Runs a loop to its end; collects into `out`, which may be empty on ranks that get no result.
template <class Loop>
bool run_loop(Loop& loop, const job& j, const watch& by, latpar::latent_view out) {
    const latpar::philox_noise noise(j.options.seed);
    loop.start(noise);
    progress told(by.label, loop.steps(), by.silent);
    const bool finished = loop.run(noise, [&](index_t step) {
        told.update(step + 1);
        return !by.stop_requested();
    });
    if (finished) loop.collect(out);
    return finished;
}

/// Samples as planned, on all ranks of the mesh. `model_calls` gets those of this rank.
bool sample(latpar::mesh<communicator>& ranks, const job& j, const run_plan& plan, int threads,
            memory_source memory, const watch& by, latpar::latent_view out, index_t& model_calls) {
    bool finished = false;
    if (plan.batches) {
        guided_model model(j, threads, memory);
        latpar::loop::batch_step loop(model, j.schedule, *plan.batches, latpar::kernel::host{},
                                      memory);
        finished = run_loop(loop, j, by, out);
        model_calls = model.branch_calls();
    } else {
        // Without axes ulysses and ring its attention is that of one rank.
        using attention = wan::sequence_parallel<communicator>;
        auto exec = std::make_shared<wan::executor>(wan::executor_options{threads, "auto", memory});
        attention attend(j.weights->config, exec, ranks.axis("ulysses"), ranks.axis("ring"));
        latpar::composition nest(
            basic_guided_model<attention>(j, std::move(exec), std::move(attend)), ranks, j.schedule,
            plan.nest, latpar::kernel::host{}, memory);
        finished = run_loop(nest, j, by, out);
        model_calls = nest.model().branch_calls();
    }
    return finished;
}

/// `model_calls` are those of this rank; ranks that share the tokens of a call count it once.
void count_calls(latpar::any_communicator& world, const run_plan& plan,
                 const latpar::mesh<communicator>& mesh, index_t model_calls, report& figures) {
    if (mesh.coordinate("ring") + mesh.coordinate("ulysses") > 0) model_calls = 0;
    const index_t predictions =
        mesh.coordinate("guidance") == 0 ? model_calls / plan.calls_in_prediction() : index_t{0};
    call_counts calls;
    calls.total = sum(from_all(world, predictions));
    calls.critical_path = plan.critical_path_calls();
    calls.model_total = sum(from_all(world, model_calls));
    calls.model_critical_path = plan.critical_path_model_calls();
    calls.model_serial = plan.serial_model_calls();
    require_as_planned("denoiser calls", calls.total, plan.denoiser_calls());
    require_as_planned("model calls", calls.model_total, plan.model_calls());
    figures.calls = calls;
}

/// What the plan sends along each axis.
std::vector<axis_bytes> planned_bytes(const run_plan& plan) {
    std::vector<axis_bytes> out;
    for (const char* axis : {"step", "guidance", "latent", "ring", "ulysses"}) {
        out.push_back({axis, plan.bytes(axis), 0});
    }
    return out;
}

bool sample_and_compare(latpar::any_communicator& world, const job& j, const surroundings& around,
                        report& figures) {
    const run_plan plan = j.plan();
    const latpar::mesh_shape& shape = plan.nest.shape;
    const int rank = world.rank();
    const bool tells = rank == 0 && !j.options.quiet;
    const int threads =
        j.options.threads > 0 ? j.options.threads : threads_for(around.ranks_on_host);
    latpar::counting_resource rank_memory;
    const memory_source memory{&rank_memory, memory_space::host};

    latpar::mesh<communicator> mesh(latpar::mesh<latpar::any_communicator>(world, shape));
    latpar::latent result;
    if (rank == 0) result = latpar::latent(j.extents, latpar::dtype::f32, memory);
    index_t model_calls = 0;
    static_cast<void>(world.control_all_gather({}));  // start the clock together
    const auto start = std::chrono::steady_clock::now();
    bool finished = sample(mesh, j, plan, threads, memory,
                           {"sampling", !tells, around.stop_requested}, result.view(), model_calls);
    if (!finished) return false;
    static_cast<void>(world.control_all_gather({}));
    figures.wall_seconds = seconds_since(start);

    figures.policy = plan.policy();
    figures.mesh = latpar::to_string(shape);
    figures.ranks = world.size();
    figures.backend = around.backend;
    figures.model = j.model_name;
    figures.latent = {j.extents[1], j.extents[2], j.extents[3], j.extents[4]};
    figures.steps = j.schedule.steps();
    figures.seed = j.options.seed;
    figures.scheduler = j.schedule.name();
    figures.threads = threads;
    if (plan.steps_at_once() > 1) {
        const latpar::loop::para_step_options& step = j.options.para_step;
        figures.rounds = {plan.steps_at_once(), step.warm_up,
                          std::string(latpar::loop::name_of(step.reuse)),
                          std::string(latpar::loop::name_of(step.history))};
    }
    figures.critical_fraction = plan.nest.latent.critical_fraction();
    count_calls(world, plan, mesh, model_calls, figures);
    count_bytes(world, mesh, planned_bytes(plan), figures);
    figures.bytes_paper = plan.paper_bytes();
    figures.workspace_bytes = from_all(world, plan.workspace_bytes(rank));
    figures.peak_bytes = from_all(world, rank_memory.peak_bytes() + j.weights->storage.bytes());

    latpar::latent serial;
    if (j.options.compare_serial && rank == 0) {
        latpar::counting_resource serial_memory;
        const memory_source alone{&serial_memory, memory_space::host};
        serial = latpar::latent(j.extents);
        const auto serial_start = std::chrono::steady_clock::now();
        guided_model model(j, threads_for(1), alone);
        latpar::loop::serial loop(model, j.schedule, j.extents, latpar::kernel::host{},
                                  latpar::dtype::f32, alone);
        finished = run_loop(loop, j, {"one rank", !tells, around.stop_requested}, serial.view());
        figures.serial_wall_seconds = seconds_since(serial_start);
        figures.serial_peak_bytes =
            serial_memory.peak_bytes() + serial.bytes() + j.weights->storage.bytes();
        if (finished) {
            const likeness alike =
                compare(j, std::as_const(result).view(), std::as_const(serial).view());
            figures.psnr_db = alike.psnr_db;
            figures.relative_error = alike.relative_error;
        }
    }
    if (finished && rank == 0) {
        const latpar::const_latent_view serial_view = std::as_const(serial).view();
        write_outputs(j, std::as_const(result).view(),
                      j.options.compare_serial ? &serial_view : nullptr);
        for (const auto& path : j.options.outputs) figures.written.push_back(path.string());
    }
    // The others wait here, so that no rank ends while rank 0 still works.
    return !latpar::any_rank(world, !finished);
}

}  // namespace

ending run_rank(latpar::any_communicator& world, const job& j, const surroundings& around,
                report& figures) {
    // Whatever goes wrong on one rank, a full disk for one, must not leave the others waiting.
    return latpar::guarded(world, [&] {
        if (is_long_video(j.options)) return make_long_video(world, j, around, figures);
        return sample_and_compare(world, j, around, figures) ? ending::complete : ending::stopped;
    });
}

}  // namespace generate

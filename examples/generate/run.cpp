// SPDX-License-Identifier: Apache-2.0
// One rank's share of a job.
#include <latpar/comm/agreement.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/compose/composition.hpp>
#include <latpar/loop/batch_step.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <generate/guided_model.hpp>
#include <generate/progress.hpp>
#include <generate/run.hpp>
#include <wan/sequence_parallel.hpp>

#include <chrono>
#include <numeric>
#include <thread>

namespace generate {
namespace {

using latpar::index_t;
using latpar::memory_source;
using latpar::memory_space;

using communicator = latpar::metered<latpar::any_communicator>;

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Who is told how far a loop is, and who may stop it.
struct watch {
    const char* label;
    bool silent;
    const std::function<bool()>& stop_requested;
};

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

/// Threads for one of `instances` models that run on this host at once.
int threads_for(int instances) {
    const int all = static_cast<int>(std::thread::hardware_concurrency());
    return std::max(1, all / instances);
}

std::vector<index_t> from_all(latpar::any_communicator& world, index_t value) {
    std::vector<index_t> out;
    for (const std::string& text : world.control_all_gather(std::to_string(value))) {
        out.push_back(std::stoll(text));
    }
    return out;
}

index_t sum(const std::vector<index_t>& values) {
    return std::accumulate(values.begin(), values.end(), index_t{0});
}

/// Errors: error if what was metered is not what was planned.
void require_as_planned(const std::string& what, index_t metered, index_t planned) {
    latpar::detail::require<latpar::error>(metered == planned, "metered ", metered, ' ', what,
                                           " where ", planned, " were planned; please report this");
}

/// `model_calls` are those of this rank; ranks that share the tokens of a call count it once.
void count_calls(latpar::any_communicator& world, const run_plan& plan,
                 const latpar::mesh<communicator>& mesh, index_t model_calls, report& figures) {
    if (mesh.coordinate("ring") + mesh.coordinate("ulysses") > 0) model_calls = 0;
    const index_t predictions =
        mesh.coordinate("guidance") == 0 ? model_calls / plan.calls_in_prediction() : index_t{0};
    figures.calls_total = sum(from_all(world, predictions));
    figures.calls_critical_path = plan.critical_path_calls();
    figures.model_calls_total = sum(from_all(world, model_calls));
    figures.model_calls_critical_path = plan.critical_path_model_calls();
    figures.model_calls_serial = plan.serial_model_calls();
    require_as_planned("denoiser calls", figures.calls_total, plan.denoiser_calls());
    require_as_planned("model calls", figures.model_calls_total, plan.model_calls());
}

void count_bytes(latpar::any_communicator& world, const run_plan& plan,
                 latpar::mesh<communicator>& mesh, report& figures) {
    index_t sent = 0;
    for (const char* axis : {"step", "guidance", "latent", "ring", "ulysses"}) {
        const bool talks = mesh.degree(axis) > 1;  // the others share one channel
        const index_t here = talks ? mesh.axis(axis).account().total().bytes_sent : 0;
        sent += here;
        figures.bytes_of_axes.push_back({axis, plan.bytes(axis), sum(from_all(world, here))});
        const axis_bytes& bytes = figures.bytes_of_axes.back();
        require_as_planned(std::string("bytes along ") + axis, bytes.metered, bytes.planned);
    }
    figures.bytes_planned = plan.bytes();
    figures.bytes_sent = from_all(world, sent);
    figures.bytes_total = sum(figures.bytes_sent);
    figures.bytes_paper = plan.paper_bytes();
    require_as_planned("bytes", figures.bytes_total, figures.bytes_planned);
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
    count_bytes(world, plan, mesh, figures);
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
    }
    // The others wait here, so that no rank ends while rank 0 still works.
    return !latpar::any_rank(world, !finished);
}

}  // namespace

bool run_rank(latpar::any_communicator& world, const job& j, const surroundings& around,
              report& figures) {
    // Whatever goes wrong on one rank, a full disk for one, must not leave the others waiting.
    return latpar::guarded(world, [&] { return sample_and_compare(world, j, around, figures); });
}

}  // namespace generate

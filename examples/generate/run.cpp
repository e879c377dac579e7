// SPDX-License-Identifier: Apache-2.0
// One rank's share of a job.
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/mesh.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/loop/serial.hpp>
#include <latpar/schedule/philox_noise.hpp>
#include <latpar/step/latent_parallel.hpp>

#include <generate/guided_model.hpp>
#include <generate/progress.hpp>
#include <generate/run.hpp>

#include <chrono>
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

/// Samples with `model`; collects into `out`, which may be empty on ranks that get no result.
template <class Model>
bool sample(Model& model, const job& j, const char* label, bool silent, memory_source memory,
            const std::function<bool()>& stop_requested, latpar::latent_view out) {
    latpar::loop::serial loop(model, j.schedule, j.extents, latpar::kernel::host{},
                              latpar::dtype::f32, memory);
    const latpar::philox_noise noise(j.options.seed);
    loop.start(noise);
    progress told(label, loop.steps(), silent);
    const bool finished = loop.run(noise, [&](index_t step) {
        told.update(step + 1);
        return !stop_requested();
    });
    if (finished) loop.collect(out);
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

bool sample_and_compare(latpar::any_communicator& world, const job& j, const surroundings& around,
                        report& figures) {
    const auto shape = latpar::mesh_shape::parse(j.options.mesh);
    const int rank = world.rank();
    const bool tells = rank == 0 && !j.options.quiet;
    const int threads =
        j.options.threads > 0 ? j.options.threads : threads_for(around.ranks_on_host);
    latpar::counting_resource rank_memory;
    const memory_source memory{&rank_memory, memory_space::host};

    communicator metered(world.duplicate());
    latpar::mesh<communicator> mesh(metered, shape);
    communicator& latent_ranks = mesh.axis("latent");
    const latpar::latent_parallel_plan plan = j.plan(latent_ranks.size());

    latpar::latent result;
    if (rank == 0 || plan.options.result_everywhere)
        result = latpar::latent(j.extents, latpar::dtype::f32, memory);
    index_t calls = 0;
    bool finished = false;
    static_cast<void>(world.control_all_gather({}));  // start the clock together
    const auto start = std::chrono::steady_clock::now();
    {
        latpar::latent_parallel policy(guided_model(j, threads, memory), latent_ranks, plan,
                                       latpar::kernel::host{}, memory);
        finished =
            sample(policy, j, "sampling", !tells, memory, around.stop_requested, result.view());
        calls = policy.model().calls();
    }
    if (!finished) return false;
    static_cast<void>(world.control_all_gather({}));
    const double wall_seconds = seconds_since(start);

    const auto sum = [](const std::vector<index_t>& values) {
        index_t out = 0;
        for (const index_t v : values) out += v;
        return out;
    };
    figures.policy = shape.axes().empty() ? "serial" : "latent_parallel";
    figures.mesh = latpar::to_string(shape);
    figures.ranks = world.size();
    figures.backend = around.backend;
    figures.model = j.model_name;
    figures.latent = {j.extents[1], j.extents[2], j.extents[3], j.extents[4]};
    figures.steps = j.schedule.steps();
    figures.seed = j.options.seed;
    figures.scheduler = j.schedule.name();
    figures.threads = threads;
    figures.wall_seconds = wall_seconds;
    figures.calls_total = sum(from_all(world, calls));
    figures.calls_critical_path = plan.problem.steps;
    figures.critical_fraction = plan.critical_fraction();
    figures.bytes_planned = plan.bytes();
    figures.bytes_sent = from_all(world, metered.account().total().bytes_sent);
    figures.bytes_total = sum(figures.bytes_sent);
    if (!shape.axes().empty()) figures.bytes_paper = plan.paper_bytes();
    figures.workspace_bytes = from_all(world, plan.workspace_bytes(latent_ranks.rank()));
    figures.peak_bytes = from_all(world, rank_memory.peak_bytes() + j.weights->storage.bytes());
    latpar::detail::require<latpar::error>(
        figures.bytes_total == figures.bytes_planned, "metered ", figures.bytes_total,
        " bytes where ", figures.bytes_planned, " were planned; please report this");

    latpar::latent serial;
    if (j.options.compare_serial && rank == 0) {
        latpar::counting_resource serial_memory;
        const memory_source alone{&serial_memory, memory_space::host};
        serial = latpar::latent(j.extents);
        const auto serial_start = std::chrono::steady_clock::now();
        guided_model model(j, threads_for(1), alone);
        finished =
            sample(model, j, "one rank", !tells, alone, around.stop_requested, serial.view());
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

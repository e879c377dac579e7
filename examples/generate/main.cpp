// SPDX-License-Identifier: Apache-2.0
// latpar-generate: samples a video on one rank or many, and reports likeness and cost.
#include <latpar/comm/agreement.hpp>
#include <latpar/comm/thread_team.hpp>

#include <generate/on_cuda.hpp>
#include <generate/run.hpp>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <thread>

#if defined(LATPAR_GENERATE_MPI)
#include <latpar/mpi/communicator.hpp>
#include <latpar/mpi/environment.hpp>
#endif

namespace {

constexpr int exit_stopped = 130;  // as shells report an interrupted program

std::atomic<bool> stop_requested = false;

/// This process's rank, as mpirun or srun tell it to their children.
std::optional<int> process_rank() {
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
        if (const char* text = std::getenv(name)) return std::atoi(text);
    }
    return std::nullopt;
}

void request_stop(int) {
    stop_requested = true;
}

void tell(const generate::options& options, const generate::report& figures) {
    if (!options.report.empty()) {
        std::ofstream file(options.report);
        file << to_json(figures);
        file.close();
        latpar::detail::require<latpar::io_error>(file.good(), "--report ", options.report.string(),
                                                  " could not be written; is its folder there?");
    }
    if (options.quiet) return;
    std::cout << to_summary(figures);
    for (const auto& path : figures.written) std::cout << "  wrote " << path << '\n';
    if (!options.report.empty()) std::cout << "  wrote " << options.report.string() << '\n';
}

int ended(generate::ending how, const generate::report& figures, bool tells) {
    if (how == generate::ending::complete) return EXIT_SUCCESS;
    if (tells) {
        std::cerr << "\nlatpar-generate: stopped; "
                  << (figures.written.empty() ? "nothing was written\n"
                                              : "what was done by then is written\n");
    }
    return exit_stopped;
}

/// Whether there are figures to tell of.
bool has_figures(generate::ending how, const generate::report& figures) {
    return how == generate::ending::complete || figures.video;
}

int run_on_threads(const generate::options& options, int ranks) {
    generate::require_device(options);
    const generate::job job = generate::prepare(options);
    const auto stopping = [] { return stop_requested.load(); };
    generate::report figures;
    auto how = generate::ending::stopped;
    latpar::thread_team(ranks).run([&](latpar::thread_communicator& comm) {
        latpar::any_communicator world(comm.duplicate());
        generate::report mine;
        const generate::ending here = run_rank(world, job, {"threads", ranks, stopping}, mine);
        if (comm.rank() == 0) {
            how = here;
            figures = std::move(mine);
        }
    });
    if (has_figures(how, figures)) tell(options, figures);
    return ended(how, figures, true);
}

#if defined(LATPAR_GENERATE_MPI)
/// The number of an environment variable, or 0.
int number_in(const char* name) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : 0;
}

int run_on_processes(const generate::options& options) {
    const latpar::mpi::environment environment;
    auto comm = latpar::mpi::communicator::world();
    latpar::any_communicator world(comm.duplicate());
    const int here = number_in("OMPI_COMM_WORLD_LOCAL_SIZE");
    const generate::surroundings around{"mpi", here > 0 ? here : world.size(),
                                        [] { return stop_requested.load(); }};
    latpar::detail::require(options.ranks == 0 || options.ranks == world.size(), "--ranks ",
                            options.ranks, " goes with threads, but mpirun started ", world.size(),
                            " processes; leave it out");
    // What one rank alone cannot do, such as reading its weights, stops all of them.
    std::optional<generate::job> job;
    std::optional<std::string> complaint;
    try {
        generate::mesh_of(options).require_size(world.size());
        generate::require_device(options);
        job.emplace(generate::prepare(options, world.rank()));
    } catch (const std::exception& error) {
        complaint = error.what();
    }
    latpar::agree_no_error(world, complaint);
    std::string identity;
    for (const auto& [option, value] : job->identity()) {
        identity += (identity.empty() ? "" : " ") + option + ' ' + value;
    }
    latpar::agree_on(world, "the video", identity);
    generate::report figures;
    const generate::ending how = run_rank(world, *job, around, figures);
    if (has_figures(how, figures) && world.rank() == 0) tell(options, figures);
    return ended(how, figures, world.rank() == 0);
}
#endif

int run(const generate::options& options) {
    generate::require_built(options);
    if (options.plan != generate::plan_format::none) {
        const auto tell_plan = [&](const auto& plan) {
            if (process_rank().value_or(0) > 0) return;
            const bool as_json = options.plan == generate::plan_format::json;
            std::cout << (as_json ? to_json(plan) : to_table(plan));
        };
        if (generate::is_long_video(options)) {
            tell_plan(generate::plan_video_only(options));
        } else {
            tell_plan(generate::plan_only(options));
        }
        return EXIT_SUCCESS;
    }
    std::signal(SIGINT, request_stop);
    std::signal(SIGTERM, request_stop);
#if defined(LATPAR_GENERATE_MPI)
    if (process_rank()) return run_on_processes(options);
#endif
    return run_on_threads(options, generate::mesh_of(options).size());
}

}  // namespace

int main(int argc, char** argv) {
    try {
        int status = EXIT_SUCCESS;
        const auto options = generate::parse_options(argc, argv, status);
        return options ? run(*options) : status;
    } catch (const std::exception& error) {
        // Ranks fail together, with one message; mpirun ends them all as soon as one has exited, so
        // the others leave rank 0 the time to tell it.
        if (process_rank().value_or(0) == 0) {
            std::cerr << "latpar-generate: " << error.what() << '\n';
        } else {
            std::this_thread::sleep_for(std::chrono::milliseconds(500));
        }
        return EXIT_FAILURE;
    }
}

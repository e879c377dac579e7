// SPDX-License-Identifier: Apache-2.0
// One run of LatentParallel on a rank of any communicator, and what it left behind.
#pragma once

#include <latpar/comm/metered.hpp>
#include <latpar/loop/serial.hpp>
#include <latpar/schedule/linear_scheduler.hpp>
#include <latpar/schedule/philox_noise.hpp>
#include <latpar/step/latent_parallel.hpp>

#include <functional>
#include <memory>
#include <vector>

/// Any denoiser behind one type, so that the policy is compiled once.
using any_model = std::function<void(latpar::const_latent_view, const latpar::step_info&,
                                     latpar::latent_view, latpar::stream_ref)>;

/// A latent and the scheduler that samples it.
struct sampling_case {
    std::array<latpar::index_t, 5> extents;
    latpar::linear_scheduler schedule;
    std::uint64_t seed = 0;
    /// The initial latent; empty: noise of the seed.
    std::vector<float> initial{};
    /// Stop after so many steps; -1: run them all.
    latpar::index_t stop_after = -1;

    [[nodiscard]] latpar::latent_problem problem() const {
        return latpar::latent_problem::of(extents, schedule);
    }
};

/// What one rank saw.
struct rank_report {
    std::vector<float> latent;  ///< empty where the result was not collected
    latpar::traffic sent_and_received;
    latpar::index_t policy_bytes = 0;      ///< what the policy took, by its memory resource
    latpar::index_t late_allocations = 0;  ///< after the first step, in policy or loop
};

template <class Model>
std::vector<float> run_loop(Model& model, const sampling_case& c, bool collects,
                            latpar::memory_source memory = {},
                            std::function<void()> after_first = {}) {
    latpar::loop::serial loop(model, c.schedule, c.extents, latpar::kernel::host{},
                              latpar::dtype::f32, memory);
    const latpar::philox_noise noise(c.seed);
    if (c.initial.empty()) {
        loop.start(noise);
    } else {
        loop.start(latpar::make_view(c.initial.data(), c.extents));
    }
    loop.run(noise, [&](latpar::index_t step) {
        if (step == 0 && after_first) after_first();
        return step + 1 != c.stop_after;
    });
    std::vector<float> out;
    if (collects) {
        out.resize(static_cast<std::size_t>(c.extents[0] * c.extents[1] * c.extents[2] *
                                            c.extents[3] * c.extents[4]));
        loop.collect(latpar::make_view(out.data(), c.extents));
    } else {
        loop.collect({});
    }
    return out;
}

/// The whole latent on one rank, without any policy.
inline std::vector<float> sample_serially(any_model model, const sampling_case& c) {
    return run_loop(model, c, true);
}

template <latpar::communicator Comm>
rank_report sample_in_parallel(Comm& inner, const latpar::latent_parallel_plan& plan,
                               any_model model, const sampling_case& c) {
    latpar::metered comm(inner.duplicate());
    latpar::counting_resource policy_memory;
    latpar::counting_resource loop_memory;
    latpar::latent_parallel policy(std::move(model), comm, plan, latpar::kernel::host{},
                                   {&policy_memory, latpar::memory_space::host});
    rank_report out;
    out.policy_bytes = policy_memory.bytes_in_use();
    latpar::index_t first = 0;
    const bool collects = comm.rank() == 0 || plan.options.result_everywhere;
    out.latent = run_loop(policy, c, collects, {&loop_memory, latpar::memory_space::host},
                          [&] { first = policy_memory.allocations() + loop_memory.allocations(); });
    out.late_allocations = policy_memory.allocations() + loop_memory.allocations() - first;
    out.sent_and_received = comm.account().total();
    return out;
}

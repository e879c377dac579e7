// SPDX-License-Identifier: Apache-2.0
// One run of ParaStep on a rank of any communicator, and what it left behind.
#pragma once

#include <latpar/loop/para_step.hpp>

#include <support/latent_parallel_run.hpp>

#include <string>
#include <vector>

/// What one rank saw of a run of ParaStep.
struct para_step_report {
    std::vector<float> latent;  ///< empty where the result was not collected
    latpar::traffic sent_and_received;
    latpar::index_t loop_bytes = 0;        ///< what the loop took, by its memory resource
    latpar::index_t late_allocations = 0;  ///< after the constructor
    latpar::index_t calls = 0;
    std::vector<latpar::index_t> called_steps;
    /// After each round: z, then the history that the next step reads.
    std::vector<std::vector<float>> states;
};

inline void append(std::vector<float>& out, const latpar::latent_block& block) {
    latpar::latent wide(block.view().extents);
    latpar::kernel::host{}.copy(block.view(), wide.view());
    const auto values = wide.elements<float>();
    out.insert(out.end(), values.begin(), values.end());
}

template <latpar::communicator Comm, class Model>
para_step_report sample_in_rounds(Comm& inner, const latpar::loop::para_step_plan& plan,
                                  Model& model, const sampling_case& c) {
    latpar::metered comm(inner.duplicate());
    latpar::counting_resource memory;
    para_step_report out;
    const auto counted = [&](latpar::const_latent_view z, const latpar::step_info& info,
                             latpar::latent_view p, latpar::stream_ref s) {
        ++out.calls;
        out.called_steps.push_back(info.samples.front().step);
        model(z, info, p, s);
    };
    // A model that is spread over ranks must keep its face.
    constexpr bool spread = latpar::distributed_denoiser<Model>;
    auto run = [&](auto& wrapped) {
        latpar::loop::para_step loop(wrapped, comm, c.schedule, plan, latpar::kernel::host{},
                                     {&memory, latpar::memory_space::host});
        out.loop_bytes = memory.bytes_in_use();
        const latpar::index_t first = memory.allocations();
        const latpar::philox_noise noise(c.seed);
        if (c.initial.empty()) {
            loop.start(noise);
        } else {
            loop.start(latpar::make_view(c.initial.data(), c.extents));
        }
        loop.run(noise, [&](latpar::index_t step) {
            if (step >= plan.options.warm_up && step + 1 < plan.problem.steps) {
                std::vector<float>& state = out.states.emplace_back();
                append(state, loop.state().z);
                for (std::size_t k = 0; k < loop.state().history.size(); ++k) {
                    if (plan.problem.reads_history(step + 1, static_cast<latpar::index_t>(k))) {
                        append(state, loop.state().history[k]);
                    }
                }
            }
            return step + 1 != c.stop_after;
        });
        if (comm.rank() == 0 || plan.options.result_everywhere) {
            out.latent.resize(static_cast<std::size_t>(c.extents[0] * c.extents[1] * c.extents[2] *
                                                       c.extents[3] * c.extents[4]));
            loop.collect(latpar::make_view(out.latent.data(), c.extents));
        } else {
            loop.collect({});
        }
        out.late_allocations = memory.allocations() - first;
    };
    if constexpr (spread) {
        run(model);
    } else {
        run(counted);
    }
    out.sent_and_received = comm.account().total();
    return out;
}

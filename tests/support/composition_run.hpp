// SPDX-License-Identifier: Apache-2.0
// One run of nested policies on a rank of any communicator, and what it left behind.
#pragma once

#include <latpar/comm/metered.hpp>
#include <latpar/compose/composition.hpp>

#include <support/latent_parallel_run.hpp>

#include <map>
#include <string>
#include <vector>

struct composition_report {
    std::vector<float> latent;                    ///< empty where the result was not collected
    std::map<std::string, latpar::index_t> sent;  ///< along each axis of the mesh
    latpar::index_t model_calls = 0;
    latpar::index_t taken_bytes = 0;
    latpar::index_t late_allocations = 0;
};

/// Runs `plan` on the ranks of `world`, which are those of its mesh, or one that simulates it.
template <latpar::communicator Comm>
composition_report sample_composed(Comm& world, const latpar::composition_plan& plan,
                                   const any_model& model, const sampling_case& c) {
    using latpar::index_t;
    const latpar::mesh_shape shape = plan.ranks == 1 ? latpar::mesh_shape{} : plan.shape;
    latpar::mesh<latpar::metered<Comm>> axes(latpar::mesh<Comm>(world, shape));
    composition_report out;
    const any_model counted = [&](latpar::const_latent_view z, const latpar::step_info& info,
                                  latpar::latent_view p, latpar::stream_ref s) {
        ++out.model_calls;
        model(z, info, p, s);
    };
    latpar::counting_resource memory;
    latpar::composition nest(counted, axes, c.schedule, plan, latpar::kernel::host{},
                             {&memory, latpar::memory_space::host});
    out.taken_bytes = memory.bytes_in_use();
    const index_t before = memory.allocations();
    const latpar::philox_noise noise(c.seed);
    nest.start(noise);
    nest.run(noise);
    if (world.rank() == 0 || plan.options.result_everywhere) {
        out.latent.resize(static_cast<std::size_t>(c.extents[0] * c.extents[1] * c.extents[2] *
                                                   c.extents[3] * c.extents[4]));
        nest.collect(latpar::make_view(out.latent.data(), c.extents));
    } else {
        nest.collect({});
    }
    out.late_allocations = memory.allocations() - before;
    for (const latpar::mesh_axis& axis : shape.axes()) {
        out.sent[axis.name] = axes.axis(axis.name).account().total().bytes_sent;
    }
    return out;
}

// SPDX-License-Identifier: Apache-2.0
// The Wan transformer with its attention on a mesh of ranks, on a rank of any communicator.
#pragma once

#include "wan_support.hpp"

#include <latpar/comm/mesh.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/compose/composition.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <wan/sequence_parallel.hpp>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

/// The ways of the tokens that the recorded inputs are tried with.
inline std::vector<latpar::mesh_shape> layer_meshes(int ranks) {
    std::vector<latpar::mesh_shape> out;
    for (int ulysses = 1; ulysses <= ranks; ++ulysses) {
        if (ranks % ulysses != 0) continue;
        out.push_back({{"ring", ranks / ulysses}, {"ulysses", ulysses}});
    }
    return out;
}

/// A model whose attention shares the tokens along `ulysses` and `ring`, without text yet.
template <latpar::communicator Comm>
wan::transformer<wan::sequence_parallel<Comm>> spread_model(
    std::shared_ptr<const wan::weights> weights, latpar::mesh<Comm>& axes,
    latpar::memory_source memory = {}) {
    auto exec = executor_of(1, "auto", memory);
    wan::sequence_parallel<Comm> attend(weights->config, exec, axes.axis("ulysses"),
                                        axes.axis("ring"));
    return {std::move(weights), std::move(exec), std::move(attend)};
}

/// What is wrong with the recorded outputs on this mesh; empty if nothing is.
template <latpar::communicator Comm>
std::string recorded_on_mesh(Comm& world, const latpar::mesh_shape& shape) {
    using namespace latpar;
    const auto recorded = safetensors_file::open(reference_file("wan_tiny_io.safetensors"));
    const auto tiny = wan::load_weights(reference_file("wan_tiny.safetensors"));
    mesh<metered<Comm>> axes(mesh<Comm>(world, shape));
    auto model = spread_model(tiny, axes);
    std::string out;
    std::map<std::string, index_t> planned;
    const int rank = axes.coordinate("ring") * axes.degree("ulysses") + axes.coordinate("ulysses");
    for (const std::string number : {"0.", "1.", "2.", "0."}) {
        const latent z = recorded_latent(recorded, number + "latent");
        const auto timestep = recorded.at(number + "timestep").template values<float>().at(0);
        model.set_text(guidance_branch::conditional, to_float32(recorded.at(number + "text")));
        const call info(z, timestep);
        const auto found = predicted(model, z, info.info);
        const double distance = relative_l2(found, to_float32(recorded.at(number + "output")));
        if (!(distance < 1e-5)) out += detail::concat("input ", number, " is ", distance, " off; ");
        const auto plan =
            layer::plan_forward(wan::transformer_shape_of(tiny->config), info.info.window.extent,
                                axes.degree("ulysses"), axes.degree("ring"));
        for (const char* axis : {"ulysses", "ring"}) {
            planned[axis] += plan.bytes_sent_by(rank, axis);
        }
    }
    for (const char* axis : {"ulysses", "ring"}) {
        const index_t sent = axes.axis(axis).account().total().bytes_sent;
        if (sent != planned[axis]) {
            out += detail::concat(axis, " sent ", sent, " bytes, planned ", planned[axis], "; ");
        }
    }
    return out;
}

/// What is wrong with a nest around the small model on this mesh: its result against the nest
/// simulated on one rank with the whole model, and its bytes against the plan.
template <latpar::communicator Comm>
std::string nest_on_mesh(Comm& world, const latpar::mesh_shape& shape,
                         latpar::latent_layout layout) {
    using namespace latpar;
    // As many channels out as in, so that it can be sampled.
    static const std::shared_ptr<const wan::weights> weights = [] {
        const temporary_folder folder;
        wan::write_random_model(
            folder / "square.safetensors",
            R"({"num_attention_heads":3,"attention_head_dim":14,"in_channels":4,"out_channels":4,)"
            R"("text_dim":8,"freq_dim":16,"ffn_dim":40,"num_layers":2,"rope_max_seq_len":32})",
            1);
        return wan::load_weights(folder / "square.safetensors");
    }();
    const std::array<index_t, 5> extents{1, 4, 3, 8, 8};
    const auto schedule = schedule::by_name("unipc_flow", 6);
    composition_options options;
    options.guidance.rule = guidance_rule::classifier_free(3.0);
    options.step.warm_up = 2;
    options.latent.layout = layout;
    options.transformer = wan::transformer_shape_of(weights->config);
    const auto problem = latent_problem::of(extents, schedule);
    const philox_noise noise(5);
    const auto sample = [&](auto& nest) {
        nest.start(noise);
        nest.run(noise);
        latent out(extents);
        nest.collect(out.view());
        return out;
    };

    mesh<metered<Comm>> axes(mesh<Comm>(world, shape));
    auto spread = spread_model(weights, axes);
    set_texts(spread);
    const auto plan = plan_composition(problem, shape, options);
    composition nest(std::move(spread), axes, schedule, plan);
    const latent found = sample(nest);

    wan::transformer<> whole(weights, executor_of(1));
    set_texts(whole);
    composition_options simulated = options;
    simulated.simulate = true;
    self_communicator alone;
    mesh<self_communicator> one(alone, {});
    composition expected_nest(std::move(whole), one, schedule,
                              plan_composition(problem, shape, simulated));
    const latent expected = sample(expected_nest);

    std::string out;
    const double distance = relative_l2(found, expected);
    const bool exact = axes.degree("ulysses") * axes.degree("ring") == 1;
    if (!(distance <= (exact ? 0.0 : 1e-4))) out += detail::concat("it is ", distance, " off; ");
    for (const mesh_axis& axis : shape.axes()) {
        const index_t sent = axes.axis(axis.name).account().total().bytes_sent;
        const index_t planned = plan.bytes_sent_by(world.rank(), axis.name);
        if (sent != planned) {
            out += detail::concat(axis.name, " sent ", sent, " bytes, planned ", planned, "; ");
        }
    }
    return out;
}

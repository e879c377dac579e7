// SPDX-License-Identifier: Apache-2.0
// Stages of the Wan transformer whose ranks share the tokens, on a rank of any communicator.
#pragma once

#include "wan_on_mesh.hpp"

#include <latpar/loop/dual_paral.hpp>

#include <memory>
#include <string>
#include <vector>

/// Five heads, so that few numbers of ranks divide them, and as many channels out as in.
inline std::shared_ptr<const wan::weights> staged_model() {
    static const std::shared_ptr<const wan::weights> weights = [] {
        const temporary_folder folder;
        wan::write_random_model(
            folder / "staged.safetensors",
            R"({"num_attention_heads":5,"attention_head_dim":12,"in_channels":4,"out_channels":4,)"
            R"("text_dim":8,"freq_dim":16,"ffn_dim":40,"num_layers":4,"rope_max_seq_len":32})",
            3);
        return wan::load_weights(folder / "staged.safetensors");
    }();
    return weights;
}

/// It on this rank of a mesh. Without text it cannot be called.
template <latpar::communicator Comm>
wan::transformer<wan::sequence_parallel<Comm>> spread_stages(latpar::mesh<Comm>& axes,
                                                             latpar::memory_source memory = {},
                                                             bool has_text = true) {
    auto out = spread_model(staged_model(), axes, memory);
    if (has_text) set_texts(out);
    return out;
}

/// A video of 13 latent frames of 3 x 2 tokens, in windows of 30 tokens.
struct staged_video {
    latpar::linear_scheduler schedule = latpar::schedule::by_name("unipc_flow", 4);
    latpar::loop::dual_paral_options options{3, 2, 13, {}, latpar::dtype::f32};
    latpar::guidance_rule rule = latpar::guidance_rule::classifier_free(3.0);
    latpar::extents3 window{5, 6, 4};

    template <class Model>
    [[nodiscard]] latpar::loop::dual_paral_plan plan(const Model& model, int stages) const {
        return plan_dual_paral(
            latpar::latent_problem::of({1, 4, window[0], window[1], window[2]}, schedule), options,
            latpar::loop::describe_stages(model, rule, window, options.cat_latents), stages);
    }
    template <class Loop>
    [[nodiscard]] std::vector<float> run(Loop& loop) const {
        std::vector<float> out;
        loop.run(latpar::coordinated_noise(7, options.block_latents, options.cat_latents),
                 [&](latpar::const_latent_view block, latpar::index_t) {
                     latpar::latent dense(block.extents);
                     latpar::kernel::host{}.copy(block, dense.view());
                     const auto values = dense.elements<float>();
                     out.insert(out.end(), values.begin(), values.end());
                 });
        return out;
    }
    /// On one rank with the whole model.
    [[nodiscard]] std::vector<float> expected() const {
        wan::transformer<> whole(staged_model(), executor_of(1));
        set_texts(whole);
        latpar::self_communicator alone;
        latpar::loop::dual_paral loop(whole, alone, schedule, rule, plan(whole, 1));
        return run(loop);
    }
};

/// Payload bytes that a rank sends along "ulysses" or "ring" for a video: the self-attention of its
/// stage's layers for each task, and what the last stage's head gathers.
template <latpar::communicator Comm>
latpar::index_t shared_bytes(const latpar::mesh<Comm>& axes, const staged_video& video,
                             const latpar::loop::dual_paral_plan& plan, const char* axis) {
    using namespace latpar;
    const int stage = axes.coordinate("stage");
    const int ulysses = axes.degree("ulysses");
    const int ring = axes.degree("ring");
    layer::transformer_shape part = wan::transformer_shape_of(staged_model()->config);
    const loop::layer_range& own = plan.stages[static_cast<std::size_t>(stage)];
    part.layers = own.last - own.first;
    if (stage + 1 < plan.ranks) part.output_columns = 0;
    index_t out = 0;
    for (index_t i = 0; i < plan.iterations(); ++i) {
        layer::row_range kept;  // of the window before
        for (const loop::dual_paral_task& task : plan.tasks_of(i)) {
            const auto key_only =
                layer::tokens_within(layer::even_tokens(6 * video.window[0], ulysses * ring), kept);
            out += plan.model.branches *
                   layer::plan_forward(part, video.window, ulysses, ring, key_only)
                       .bytes_sent_by(
                           axes.coordinate("ring") * ulysses + axes.coordinate("ulysses"), axis);
            const index_t front = task.has_front ? plan.options.cat_latents : 0;
            kept = {6 * front, 6 * (front + plan.options.cat_latents)};
        }
    }
    return out;
}

/// What is wrong with a video from pipelines along `stage` whose stages share the tokens along
/// `ulysses` and `ring`: the video, memory, and what this rank sent. The loop is given the mesh, or
/// the pipeline alone: then each pipeline hands the video out. `planned_bytes` gets what this rank
/// is to send along all axes.
template <latpar::communicator Comm>
std::string video_on_mesh(Comm& world, const latpar::mesh_shape& shape, const staged_video& video,
                          const std::vector<float>& expected, bool takes_mesh,
                          latpar::index_t* planned_bytes = nullptr) {
    using namespace latpar;
    mesh<metered<Comm>> axes(mesh<Comm>(world, shape));
    auto model = spread_stages(axes);
    const int stage = axes.coordinate("stage");
    const auto plan = video.plan(model, axes.degree("stage"));
    counting_resource memory;
    const memory_source source{&memory, memory_space::host};
    auto loop = takes_mesh ? loop::dual_paral(model, axes, video.schedule, video.rule, plan,
                                              kernel::host{}, source)
                           : loop::dual_paral(model, axes.axis("stage"), video.schedule, video.rule,
                                              plan, kernel::host{}, source);
    std::string out;
    if (memory.bytes_in_use() != plan.workspace_bytes(stage)) {
        out += detail::concat("took ", memory.bytes_in_use(), " bytes, planned ",
                              plan.workspace_bytes(stage), "; ");
    }
    const auto found = video.run(loop);
    if (takes_mesh ? world.rank() != 0 : stage != 0) {
        if (!found.empty()) out += "a video was handed out; ";
    } else {
        const double distance = relative_l2(found, expected);
        if (!(distance < 1e-5)) out += detail::concat("the video is ", distance, " off; ");
    }
    const auto check = [&](const char* axis, index_t planned) {
        if (planned_bytes) *planned_bytes += planned;
        const index_t sent = axes.axis(axis).account().total().bytes_sent;
        if (sent == planned) return;
        out += detail::concat(axis, " sent ", sent, " bytes, planned ", planned, "; ");
    };
    check("stage", plan.bytes_sent_by(stage, plan.iterations()));
    for (const char* axis : {"ulysses", "ring"}) {
        check(axis, shared_bytes(axes, video, plan, axis));
    }
    return out;
}

// SPDX-License-Identifier: Apache-2.0
// What a long video is going to do and cost: DualParal on a mesh, planned.
#include <latpar/denoise/guidance_rule.hpp>
#include <latpar/layer/attention.hpp>
#include <latpar/loop/dual_paral.hpp>

#include <generate/plan.hpp>
#include <generate/video_plan.hpp>
#include <nlohmann/json.hpp>
#include <wan/sequence_parallel.hpp>
#include <wan/transformer.hpp>

#include <algorithm>
#include <memory>
#include <utility>

#if defined(LATPAR_GENERATE_CUDA)
#include <wan/cuda/weights.hpp>
#endif

namespace generate {
namespace {

using json = nlohmann::ordered_json;
using latpar::dtype;
using latpar::extents3;
using latpar::index_t;
using latpar::detail::concat;
using latpar::loop::dual_paral_plan;

/// An attention to plan with: it knows which part of the tokens a rank has.
class planned_attention {
public:
    planned_attention(int part, int parts) : part_(part), parts_(parts) {}

    [[nodiscard]] std::pair<index_t, index_t> token_range(index_t tokens) const {
        index_t begin = 0;
        const auto all = latpar::layer::even_tokens(tokens, parts_);
        for (int k = 0; k < part_; ++k) begin += all[static_cast<std::size_t>(k)];
        return {begin, begin + all[static_cast<std::size_t>(part_)]};
    }
    void operator()(wan::const_heads_view, wan::const_heads_view, wan::const_heads_view,
                    wan::heads_view, wan::lse_view, latpar::stream_ref) const {}

private:
    int part_;
    int parts_;
};

/// A model to plan with, of which nothing but the shape is asked for.
class planned_model : public wan::transformer<planned_attention> {
public:
    planned_model(const wan::config& model, dtype type, int part, int parts)
        : wan::transformer<planned_attention>(
              weights_of(model),
              std::make_shared<wan::executor>(wan::executor_options{.threads = 1}),
              planned_attention(part, parts)),
          type_(type) {}

    [[nodiscard]] latpar::feature_cache_plan plan_cache(
        index_t first, index_t last, std::span<const latpar::guidance_branch> branches,
        index_t latents, const extents3& window) const {
        auto out =
            wan::transformer<planned_attention>::plan_cache(first, last, branches, latents, window);
        out.type = type_;
        return out;
    }

private:
    static std::shared_ptr<const wan::weights> weights_of(const wan::config& model) {
        return std::make_shared<wan::weights>(model, wan::layer_range{});
    }

    dtype type_;  // of keys and values
};

/// What travels in the layers: of a block that sees the one behind it, and of one that does not.
std::array<latpar::layer::forward_plan, 2> plan_calls(const wan::config& model, dtype type,
                                                      const extents3& window, index_t cat_latents,
                                                      int ulysses, int ring) {
    const auto transformer = wan::transformer_shape_of(model, type);
    const extents3 grid = model.token_grid(window);
    const index_t cat =
        cat_latents == 0 ? 0 : model.token_grid({cat_latents, window[1], window[2]})[0];
    // The block behind, in whose window they are the first after the context, kept them.
    const index_t frame = grid[1] * grid[2];
    const auto lent =
        latpar::layer::tokens_within(latpar::layer::even_tokens(grid[0] * frame, ulysses * ring),
                                     {cat * frame, 2 * cat * frame});
    return {latpar::layer::plan_forward(transformer, window, ulysses, ring),
            latpar::layer::plan_forward(transformer, window, ulysses, ring, lent)};
}

/// Of the device that computes with them.
index_t weight_bytes([[maybe_unused]] const options& wanted, const wan::config& model,
                     wan::layer_range layers) {
#if defined(LATPAR_GENERATE_CUDA)
    if (wanted.device == device_kind::cuda) {
        return wan::cuda::weight_bytes(model, wanted.precision, layers);
    }
#endif
    return wan::weight_bytes(model, layers);
}

template <class F>
json by_rank(const video_plan& plan, F&& f) {
    json out = json::array();
    for (int rank = 0; rank < plan.shape.size(); ++rank) out.push_back(f(rank));
    return out;
}

}  // namespace

bool is_long_video(const options& wanted) {
    const auto shape = latpar::mesh_shape::parse(wanted.mesh);
    return std::ranges::count(shape.axes(), "stage", &latpar::mesh_axis::name) > 0;
}

index_t delivered_latents(const options& wanted) {
    if (wanted.video.total_latents) return *wanted.video.total_latents;
    return wanted.latent ? (*wanted.latent)[1] : wanted.frames;
}

const dual_paral_plan& video_plan::of(int rank) const {
    const int place = shape.coordinate(rank, "ring") * shape.degree("ulysses") +
                      shape.coordinate(rank, "ulysses");
    return pipelines[static_cast<std::size_t>(place)];
}

std::string video_plan::policy() const {
    const std::string nested = nested_policies(shape);
    return nested.empty() ? "dual_paral" : "dual_paral(" + nested + ')';
}

index_t video_plan::blocks_before(index_t iteration) const {
    const dual_paral_plan& pipeline = pipelines.front();
    const index_t done = std::max<index_t>(0, iteration - pipeline.steps() + 1);
    return pipeline.blocks() < 0 ? done : std::min(done, pipeline.blocks());
}

index_t video_plan::latents_before(index_t iteration) const {
    const index_t blocks = blocks_before(iteration);
    const dual_paral_plan& pipeline = pipelines.front();
    return blocks == 0 ? 0
                       : pipeline.first_latent_of(blocks - 1) + pipeline.delivered_of(blocks - 1);
}

index_t video_plan::bytes_sent_by(int rank, std::string_view axis, index_t iterations) const {
    const dual_paral_plan& pipeline = of(rank);
    const int stage = stage_of(rank);
    if (axis == "stage") return pipeline.bytes_sent_by(stage, iterations);
    if (axis == "guidance") return pipeline.guidance_bytes_sent_by(stage, iterations);
    if (!calls) return 0;
    const latpar::loop::layer_range& own = pipeline.stages[static_cast<std::size_t>(stage)];
    const int place = shape.coordinate(rank, "ring") * shape.degree("ulysses") +
                      shape.coordinate(rank, "ulysses");
    const auto bytes_of = [&](latpar::layer::forward_plan call) {
        call.shape.layers = own.last - own.first;
        if (stage + 1 < pipeline.ranks) call.shape.output_columns = 0;
        return call.bytes_sent_by(place, axis) * pipeline.model.branches;
    };
    // The first task of an iteration finds the cache empty.
    const index_t tasks = pipeline.tasks_before(iterations);
    return iterations * bytes_of(calls->front()) + (tasks - iterations) * bytes_of(calls->back());
}

index_t video_plan::bytes(std::string_view axis, index_t iterations) const {
    index_t out = 0;
    for (int rank = 0; rank < shape.size(); ++rank) out += bytes_sent_by(rank, axis, iterations);
    return out;
}

index_t video_plan::workspace_bytes(int rank) const {
    index_t out = of(rank).workspace_bytes(stage_of(rank));
    if (calls) {
        const int place = shape.coordinate(rank, "ring") * shape.degree("ulysses") +
                          shape.coordinate(rank, "ulysses");
        out += calls->back().workspace_bytes(place);
    }
    return out;
}

latpar::loop::pipeline_estimate video_plan::estimate() const {
    const dual_paral_plan& pipeline = pipelines.front();
    latpar::loop::pipeline_estimate out =
        pipeline.estimate(pipeline.blocks() < 0 ? 4 * pipeline.steps() : pipeline.blocks());
    std::vector<double> of_ranks;
    for (int rank = 0; rank < shape.size(); ++rank) {
        of_ranks.push_back(out.idle_share[static_cast<std::size_t>(stage_of(rank))]);
    }
    out.idle_share = std::move(of_ranks);
    return out;
}

video_plan plan_video(const options& wanted, const std::array<index_t, 5>& extents,
                      const latpar::linear_scheduler& schedule, const wan::config& model) {
    video_plan out{
        mesh_of(wanted), {}, {}, {}, weight_bytes(wanted, model, {0, model.num_layers}), {}};
    latpar::loop::dual_paral_options policy;
    policy.block_latents = wanted.video.block_latents;
    policy.cat_latents = wanted.video.cat_latents;
    policy.total_latents = delivered_latents(wanted);
    policy.wire_prediction = wanted.latent_parallel.wire_prediction;
    const extents3 window{policy.block_latents + policy.cat_latents, extents[3], extents[4]};
    const auto problem =
        latpar::latent_problem::of({1, extents[1], window[0], window[1], window[2]}, schedule);
    const auto rule = latpar::guidance_rule::classifier_free(wanted.guidance);
    const int ulysses = out.shape.degree("ulysses");
    const int ring = out.shape.degree("ring");
    const int parts = ulysses * ring;
    for (int part = 0; part < parts; ++part) {
        const planned_model stages(model, wanted.precision, part, parts);
        out.pipelines.push_back(latpar::loop::plan_dual_paral(
            problem, policy,
            latpar::loop::describe_stages(stages, rule, window, policy.cat_latents,
                                          out.shape.degree("guidance")),
            out.shape.degree("stage")));
    }
    if (parts > 1) {
        out.calls = plan_calls(model, wanted.precision, window, policy.cat_latents, ulysses, ring);
    }
    for (const latpar::loop::layer_range& own : out.pipelines.front().stages) {
        out.weight_bytes.push_back(weight_bytes(wanted, model, {own.first, own.last}));
    }
    return out;
}

std::string to_table(const video_plan& plan) {
    const dual_paral_plan& pipeline = plan.pipelines.front();
    std::string out = "model            " + plan.model + "\n\n" + to_table(pipeline);
    out += concat("weights          ",
                  mebibytes(*std::max_element(plan.weight_bytes.begin(), plan.weight_bytes.end())),
                  " a stage at most, ", mebibytes(plan.all_weight_bytes), " in all\n");
    if (plan.shape.size() == plan.shape.degree("stage")) return out;
    out += concat("\nmesh ", plan.shape, ", ", plan.policy(),
                  ": the figures above are those of one pipeline\n");
    if (pipeline.iterations() < 0) return out;
    for (const std::string_view axis : video_plan::axes) {
        if (plan.shape.degree(axis) == 1) continue;
        const index_t bytes = plan.bytes(axis, pipeline.iterations());
        out += concat("bytes along ", axis, ", all ranks  ", bytes, " = ", mebibytes(bytes), '\n');
    }
    return out;
}

std::string to_json(const video_plan& plan) {
    const dual_paral_plan& pipeline = plan.pipelines.front();
    const index_t iterations = pipeline.iterations();
    const bool ends = iterations >= 0;
    const auto estimate = plan.estimate();
    json stages = json::array();
    for (const latpar::loop::layer_range& s : pipeline.stages) {
        stages.push_back({{"first_layer", s.first}, {"last_layer", s.last}});
    }
    json axes;
    index_t total = 0;
    for (const std::string_view axis : video_plan::axes) {
        json& one = axes[std::string(axis)];
        one["degree"] = plan.shape.degree(axis);
        one["bytes"] = ends ? json(plan.bytes(axis, iterations)) : json(nullptr);
        one["sent"] =
            ends ? by_rank(plan,
                           [&](int rank) { return plan.bytes_sent_by(rank, axis, iterations); })
                 : json(nullptr);
        if (ends) total += plan.bytes(axis, iterations);
    }
    const latpar::extents3& window = pipeline.problem.extents;
    const json out{
        {"model", plan.model},
        {"policy", plan.policy()},
        {"mesh", latpar::to_string(plan.shape)},
        {"latent",
         {pipeline.problem.channels, pipeline.options.total_latents, window[1], window[2]}},
        {"window", window},
        {"steps", pipeline.steps()},
        {"ranks", plan.shape.size()},
        {"block_latents", pipeline.options.block_latents},
        {"cat_latents", pipeline.options.cat_latents},
        {"wire", latpar::name_of(pipeline.options.wire_prediction)},
        {"blocks", ends ? json(pipeline.blocks()) : json(nullptr)},
        {"iterations", ends ? json(iterations) : json(nullptr)},
        {"stages", stages},
        {"idle_share", {{"mean", estimate.mean_idle_share}, {"ranks", estimate.idle_share}}},
        {"axes", axes},
        {"bytes",
         {{"total", ends ? json(total) : json(nullptr)}, {"hidden", pipeline.hidden_bytes()}}},
        {"workspace_bytes", by_rank(plan, [&](int rank) { return plan.workspace_bytes(rank); })},
        {"weight_bytes", by_rank(plan, [&](int rank) {
             return plan.weight_bytes[static_cast<std::size_t>(plan.stage_of(rank))];
         })}};
    return out.dump(2) + '\n';
}

}  // namespace generate

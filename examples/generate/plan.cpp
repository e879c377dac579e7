// SPDX-License-Identifier: Apache-2.0
// What a run is going to do and cost: its policies, planned.
#include <latpar/core/error.hpp>

#include <generate/plan.hpp>
#include <generate/video_plan.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <iomanip>
#include <sstream>

namespace generate {
namespace {

using json = nlohmann::ordered_json;
using latpar::index_t;
using latpar::detail::require;

/// The axes that nest, from far to near, and their policies.
constexpr std::array<std::pair<std::string_view, std::string_view>, 5> policies{
    {{"step", "para_step"},
     {"guidance", "guidance_parallel"},
     {"latent", "latent_parallel"},
     {"ring", "ring"},
     {"ulysses", "ulysses"}}};

/// Whether `axis` alone has more than one rank.
bool is_only_axis(const latpar::mesh_shape& shape, std::string_view axis) {
    return shape.degree(axis) > 1 && shape.degree(axis) == shape.size();
}

latpar::composition_options nest_options(
    const options& wanted, const latpar::extents3& patch, const latpar::guidance_rule& rule,
    const std::optional<latpar::layer::transformer_shape>& transformer) {
    latpar::composition_options out;
    out.transformer = transformer;
    out.step = wanted.para_step;
    out.guidance.rule = rule;
    out.guidance.wire_prediction = wanted.latent_parallel.wire_prediction;
    out.latent = wanted.latent_parallel;
    out.latent.patch = patch;
    out.result_everywhere = false;
    return out;
}

json box_json(const latpar::box& b) {
    return {{"origin", b.origin}, {"extent", b.extent}};
}

json cuts_json(const latpar::latent_parallel_plan& plan) {
    json out = json::array();
    for (const latpar::latent_cut& cut : plan.cuts) {
        json parts = json::array();
        for (const latpar::latent_part& part : cut.parts) {
            parts.push_back({{"core", box_json(part.core)}, {"window", box_json(part.window)}});
        }
        out.push_back({{"axis", latpar::name_of(cut.along)}, {"parts", parts}});
    }
    return out;
}

template <class F>
json by_rank(int ranks, F&& f) {
    json out = json::array();
    for (int rank = 0; rank < ranks; ++rank) out.push_back(f(rank));
    return out;
}

json axis_json(const run_plan& plan, std::string_view axis) {
    const latpar::composition_plan& nest = plan.nest;
    json out{
        {"degree", nest.shape.degree(axis)},
        {"bytes", plan.bytes(axis)},
        {"sent", by_rank(nest.ranks, [&](int rank) { return plan.bytes_sent_by(rank, axis); })}};
    if (axis == "step" && nest.in_rounds()) {
        const latpar::loop::para_step_options& step = nest.step.front().options;
        out["warm_up"] = step.warm_up;
        out["reuse"] = latpar::loop::name_of(step.reuse);
        out["history"] = latpar::loop::name_of(step.history);
    }
    return out;
}

}  // namespace

std::string mebibytes(index_t bytes) {
    std::ostringstream out;
    out << std::fixed << std::setprecision(2) << static_cast<double>(bytes) / (1024.0 * 1024.0)
        << " MiB";
    return std::move(out).str();
}

std::string nested_policies(const latpar::mesh_shape& shape) {
    std::string out;
    for (const auto& [axis, name] : policies) {
        if (shape.degree(axis) == 1) continue;
        // Ulysses and a ring together are one policy.
        const bool both = shape.degree("ring") > 1 && shape.degree("ulysses") > 1;
        if (both && axis == "ulysses") continue;
        if (!out.empty()) out += '(';
        out += both && axis == "ring" ? "usp" : name;
    }
    out.append(static_cast<std::size_t>(std::count(out.begin(), out.end(), '(')), ')');
    return out;
}

std::string run_plan::policy() const {
    if (batches) return "batch_step";
    const std::string nested = nested_policies(nest.shape);
    return nested.empty() ? "serial" : nested;
}

int run_plan::steps_at_once() const {
    return batches ? batches->options.degree : nest.shape.degree("step");
}

index_t run_plan::calls_in_prediction() const {
    return static_cast<index_t>(nest.guidance.front().step_at(0).calls[0].size()) * calls_inside;
}

index_t run_plan::denoiser_calls() const {
    if (batches) return batches->denoiser_calls();
    index_t calls = 0;
    for (int rank = 0; rank < nest.ranks; ++rank) {
        if (nest.shape.coordinate(rank, "guidance") + nest.shape.coordinate(rank, "ring") +
                nest.shape.coordinate(rank, "ulysses") ==
            0) {
            calls += nest.model_calls_by(rank);
        }
    }
    return calls * calls_inside / calls_in_prediction();
}

index_t run_plan::critical_path_calls() const {
    return batches ? batches->critical_path_calls() : nest.critical_path_calls();
}

index_t run_plan::model_calls() const {
    return nest.model_calls() * calls_inside;
}

index_t run_plan::critical_path_model_calls() const {
    if (batches) return batches->critical_path_calls() * calls_in_prediction();
    return nest.critical_path_evaluations() * calls_inside;
}

index_t run_plan::serial_model_calls() const {
    return nest.serial_evaluations() * calls_inside;
}

std::optional<index_t> run_plan::paper_bytes() const {
    if (is_only_axis(nest.shape, "latent")) return nest.latent.paper_bytes();
    if (is_only_axis(nest.shape, "step")) return nest.step.front().paper_bytes();
    return std::nullopt;
}

index_t run_plan::workspace_bytes(int rank) const {
    return batches ? batches->workspace_bytes() : nest.workspace_bytes(rank);
}

index_t run_plan::bytes_sent_by(int rank, std::string_view axis) const {
    // What a call of the model sends it sends for each branch that is combined inside.
    const bool in_layers = axis == "ring" || axis == "ulysses";
    return nest.bytes_sent_by(rank, axis) * (in_layers ? calls_inside : 1);
}

index_t run_plan::bytes_sent_by(int rank) const {
    index_t out = 0;
    for (const auto& [axis, name] : policies) out += bytes_sent_by(rank, axis);
    return out;
}

index_t run_plan::bytes(std::string_view axis) const {
    index_t out = 0;
    for (int rank = 0; rank < nest.ranks; ++rank) out += bytes_sent_by(rank, axis);
    return out;
}

index_t run_plan::bytes() const {
    index_t out = 0;
    for (const auto& [axis, name] : policies) out += bytes(axis);
    return out;
}

latpar::mesh_shape mesh_of(const options& wanted) {
    auto shape = latpar::mesh_shape::parse(wanted.mesh);
    if (is_long_video(wanted)) {
        require(shape.degree("step") == 1, "the mesh ", shape,
                " has the axes stage and step: ParaStep guesses predictions ahead, and the blocks "
                "of DualParal, several steps of the video at once already, wait for true ones; "
                "leave step out");
        require(shape.degree("latent") == 1, "the mesh ", shape,
                " has the axes stage and latent: the layers of a stage lend whole windows' keys "
                "and values to the next block, and parts of windows have none; cut the tokens "
                "with ulysses or ring in place of latent");
    }
    if (wanted.batch_step > 0) {
        require(wanted.ranks <= 1, "--batch-step ", wanted.batch_step,
                " has one rank, not --ranks ", wanted.ranks, "; leave --ranks out");
        require(shape.degree("step") == 1, "--batch-step ", wanted.batch_step,
                " gives one rank several steps in a batch, --mesh step=", shape.degree("step"),
                " gives several ranks a step each; leave one of them out");
        require(shape.size() == 1, "--batch-step ", wanted.batch_step,
                " batches the steps of one rank, and the policies of the mesh ", shape,
                " take one step a call; leave --mesh out, or use step=", wanted.batch_step,
                " on it in place of --batch-step");
    }
    if (wanted.ranks > 0) shape.require_size(wanted.ranks);
    return shape;
}

run_plan plan_run(const options& wanted, const latpar::latent_problem& problem,
                  const latpar::extents3& patch,
                  const std::optional<latpar::layer::transformer_shape>& transformer) {
    const latpar::mesh_shape shape = mesh_of(wanted);
    auto rule = latpar::guidance_rule::classifier_free(wanted.guidance);
    index_t calls_inside = 1;
    if (shape.degree("latent") > 1 && shape.degree("guidance") == 1) {
        calls_inside = static_cast<index_t>(rule.live_branches(0).size());
        rule = latpar::guidance_rule::of({latpar::guidance_branch::guided}, {{1.0}});
    }
    run_plan out{
        latpar::plan_composition(problem, shape, nest_options(wanted, patch, rule, transformer)),
        {},
        calls_inside,
        {}};
    if (wanted.batch_step > 0) {
        latpar::loop::batch_step_options batch;
        batch.degree = wanted.batch_step;
        batch.warm_up = wanted.para_step.warm_up;
        batch.reuse = wanted.para_step.reuse;
        out.batches = latpar::loop::plan_batch_step(problem, batch);
    }
    return out;
}

namespace {

/// Without the model.
std::string table_of(const run_plan& plan) {
    if (is_only_axis(plan.nest.shape, "latent")) return to_table(plan.nest.latent);
    if (!plan.batches) {
        std::string out = to_table(plan.nest);
        if (plan.calls_inside > 1) {
            out += latpar::detail::concat(
                "\nguidance is combined within the cut: a model call above is one of each of its ",
                plan.calls_inside, " branches\n");
        }
        return out;
    }
    const latpar::loop::batch_step_plan& batches = *plan.batches;
    return latpar::detail::concat(
        "BatchStep: ", batches.problem.steps, " steps, warm-up ", batches.options.warm_up,
        ", batches of ", batches.options.degree, ", reuse ",
        latpar::loop::name_of(batches.options.reuse), "\n\ndenoiser calls   ",
        plan.critical_path_calls(), " one after the other, of up to ", batches.options.degree,
        " samples; ", batches.problem.steps, " without batches\nmodel calls      ",
        plan.critical_path_model_calls(), " one after the other, ", plan.serial_model_calls(),
        " without batches\nworkspace        ", plan.workspace_bytes(0), " = ",
        mebibytes(plan.workspace_bytes(0)), '\n');
}

}  // namespace

std::string to_table(const run_plan& plan) {
    return (plan.model.empty() ? "" : "model            " + plan.model + "\n\n") + table_of(plan);
}

std::string to_json(const run_plan& plan) {
    const latpar::composition_plan& nest = plan.nest;
    const latpar::latent_parallel_plan& latent = nest.latent;
    json axes;
    for (const auto& [axis, name] : policies) axes[std::string(axis)] = axis_json(plan, axis);
    // Only LatentParallel's plan says what each rank receives.
    const json received =
        nest.ranks == latent.ranks
            ? by_rank(latent.ranks, [&](int rank) { return latent.bytes_received_by(rank); })
            : json(nullptr);
    const auto paper = plan.paper_bytes();
    json out{{"model", plan.model.empty() ? json(nullptr) : json(plan.model)},
             {"policy", plan.policy()},
             {"mesh", latpar::to_string(nest.shape)},
             {"latent",
              {nest.problem.channels, nest.problem.extents[0], nest.problem.extents[1],
               nest.problem.extents[2]}},
             {"steps", nest.problem.steps},
             {"ranks", nest.ranks},
             {"overlap", latent.options.overlap},
             {"partition", latpar::name_of(latent.options.cores)},
             {"layout", latpar::name_of(latent.options.layout)},
             {"wire",
              {latpar::name_of(latent.options.wire_prediction),
               latpar::name_of(latent.options.wire_state)}},
             {"cuts", cuts_json(latent)},
             {"axes", axes},
             {"denoiser_calls",
              {{"total", plan.denoiser_calls()},
               {"critical_path", plan.critical_path_calls()},
               {"critical_fraction", latent.critical_fraction()}}},
             {"model_calls",
              {{"total", plan.model_calls()},
               {"critical_path", plan.critical_path_model_calls()},
               {"serial", plan.serial_model_calls()}}},
             {"bytes",
              {{"total", plan.bytes()},
               {"sent", by_rank(nest.ranks, [&](int rank) { return plan.bytes_sent_by(rank); })},
               {"received", received},
               {"paper", paper ? json(*paper) : json(nullptr)}}},
             {"workspace_bytes",
              by_rank(nest.ranks, [&](int rank) { return plan.workspace_bytes(rank); })}};
    if (plan.batches) {
        out["batch_step"] = {{"degree", plan.batches->options.degree},
                             {"warm_up", plan.batches->options.warm_up},
                             {"reuse", latpar::loop::name_of(plan.batches->options.reuse)}};
    }
    return out.dump(2) + '\n';
}

}  // namespace generate

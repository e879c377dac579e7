// SPDX-License-Identifier: Apache-2.0
// Policies that nest on a mesh, planned together.
#include <latpar/compose/composition_plan.hpp>

#include <core/mebibytes.hpp>

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <numeric>
#include <sstream>

namespace latpar::inline v0 {

using detail::mebibytes;
using detail::require;

namespace {

constexpr std::array<std::string_view, 5> axes{"step", "guidance", "latent", "ring", "ulysses"};

/// Where a rank sits.
struct place {
    int step = 0;
    int guidance = 0;
    int latent = 0;
    int layer = 0;  ///< along ring and ulysses, as forward_plan counts

    [[nodiscard]] bool is_first() const { return step == 0 && guidance == 0 && layer == 0; }
};

place place_of(const composition_plan& plan, int rank) {
    if (plan.ranks == 1) return {};
    return {plan.shape.coordinate(rank, "step"), plan.shape.coordinate(rank, "guidance"),
            plan.shape.coordinate(rank, "latent"),
            plan.shape.coordinate(rank, "ring") * plan.shape.degree("ulysses") +
                plan.shape.coordinate(rank, "ulysses")};
}

/// The steps at which the ranks of a place along the step axis call their model.
std::vector<index_t> steps_of(const composition_plan& plan, int step_rank) {
    if (plan.in_rounds()) return plan.step.front().steps_of(step_rank);
    std::vector<index_t> out(static_cast<std::size_t>(plan.problem.steps));
    std::iota(out.begin(), out.end(), index_t{0});
    return out;
}

index_t calls_at(const guidance_parallel_plan& plan, index_t step, int rank) {
    return static_cast<index_t>(plan.step_at(step).calls[static_cast<std::size_t>(rank)].size());
}

bool in_layers(const mesh_shape& shape) {
    return shape.degree("ring") * shape.degree("ulysses") > 1;
}

/// The sum over what is done one after the other of calls of the model in a step, on the rank that
/// makes the most, times `cost(step)`; the steps of a round run at once, also where one rank only
/// simulates that.
template <class Cost>
double critical_path_of(const composition_plan& plan, Cost&& cost) {
    const int branches = plan.shape.degree("guidance");
    const auto of_step = [&](index_t i) {
        const auto live = static_cast<int>(plan.options.guidance.rule.live_branches(i).size());
        const int calls = live == 1 ? 1 : (live + branches - 1) / branches;
        return calls * cost(i);
    };
    double out = 0;
    const index_t warm_up =
        plan.in_rounds() ? plan.step.front().options.warm_up : plan.problem.steps;
    for (index_t i = 0; i < warm_up; ++i) out += of_step(i);
    if (!plan.in_rounds()) return out;
    for (const loop::para_step_round& round : plan.step.front().rounds) {
        double most = 0;
        for (index_t i = round.first; i < round.first + round.count; ++i) {
            most = std::max(most, of_step(i));
        }
        out += most;
    }
    return out;
}

void check_axes(const mesh_shape& shape, const composition_options& options) {
    for (const mesh_axis& axis : shape.axes()) {
        require(
            axis.name != "stage" || axis.degree == 1,
            "the mesh axis stage belongs to loop::dual_paral, which does not nest here: its queue "
            "already has several denoising steps under way; use it, with the axes guidance, "
            "ring and ulysses beside stage, or leave stage out");
    }
    require(options.transformer || !in_layers(shape), "the mesh ", shape,
            " spreads the model's attention, which must then talk in its layers: describe the "
            "transformer (composition_options::transformer), or leave ring and ulysses out");
}

/// The calls of the model on each part of each cut.
std::vector<std::vector<layer::forward_plan>> plan_layers(const composition_plan& plan) {
    std::vector<std::vector<layer::forward_plan>> out;
    if (plan.options.simulate || !in_layers(plan.shape)) return out;
    for (const latent_cut& cut : plan.latent.cuts) {
        auto& parts = out.emplace_back();
        for (const latent_part& part : cut.parts) {
            parts.push_back(layer::plan_forward(*plan.options.transformer, part.window.extent,
                                                plan.shape.degree("ulysses"),
                                                plan.shape.degree("ring")));
        }
    }
    return out;
}

latent_parallel_plan plan_latent(const latent_problem& problem, const composition_options& options,
                                 int degree, bool in_rounds) {
    latent_parallel_options latent = options.latent;
    latent.parts = degree;
    latent.result_everywhere = options.result_everywhere;
    require(!in_rounds || latent.layout != latent_layout::sharded,
            "the layout sharded cuts the latent anew at each step, and an axis step reuses "
            "predictions across steps; use replicated or central for the axis latent, or leave "
            "step out");
    if (in_rounds && latent.layout == latent_layout::automatic) {
        latent.layout = latent_layout::replicated;
    }
    return plan_latent_parallel(problem, latent, options.simulate ? 1 : degree);
}

}  // namespace

composition_plan plan_composition(const latent_problem& problem, const mesh_shape& shape,
                                  composition_options options) {
    check_axes(shape, options);
    const int steps = shape.degree("step");
    const int branches = shape.degree("guidance");
    composition_plan plan{problem,
                          options,
                          shape,
                          options.simulate ? 1 : shape.size(),
                          plan_latent(problem, options, shape.degree("latent"), steps > 1),
                          {},
                          {},
                          {}};
    for (int rank = 0; rank < plan.latent.ranks; ++rank) {
        guidance_parallel_options guidance = options.guidance;
        guidance.degree = branches;
        guidance.result_everywhere = options.result_everywhere;
        guidance.predicted.clear();
        for (index_t i = 0; i < problem.steps; ++i) {
            guidance.predicted.push_back(plan.latent.stepped(i, rank));
        }
        plan.guidance.push_back(
            plan_guidance_parallel(problem, guidance, options.simulate ? 1 : branches));
        if (steps == 1) continue;
        loop::para_step_options step = options.step;
        step.degree = steps;
        step.result_everywhere = options.result_everywhere;
        step.held = plan.latent.held(0, rank);
        plan.step.push_back(loop::plan_para_step(problem, step, options.simulate ? 1 : steps));
    }
    plan.forward = plan_layers(plan);
    return plan;
}

const guidance_parallel_plan& composition_plan::guidance_of(int rank) const {
    return guidance[static_cast<std::size_t>(place_of(*this, rank).latent)];
}

const loop::para_step_plan& composition_plan::step_of(int rank) const {
    require(in_rounds(), "the plan of an axis step was asked for; the mesh ", shape, " has none");
    return step[static_cast<std::size_t>(place_of(*this, rank).latent)];
}

index_t composition_plan::critical_path_calls() const {
    return in_rounds() ? step.front().critical_path_calls() : problem.steps;
}

index_t composition_plan::critical_path_evaluations() const {
    return static_cast<index_t>(std::llround(critical_path_of(*this, [](index_t) { return 1.0; })));
}

index_t composition_plan::serial_evaluations() const {
    return guidance.front().serial_calls();
}

index_t composition_plan::model_calls_by(int rank) const {
    const place at = place_of(*this, rank);
    index_t out = 0;
    for (const index_t i : steps_of(*this, at.step)) {
        const auto& parts = latent.cut_of(i).parts;
        index_t busy = 0;
        for (std::size_t k = 0; k < parts.size(); ++k) {
            if (latent.simulated() || static_cast<int>(k) == at.latent) {
                busy += parts[k].window.empty() ? 0 : 1;
            }
        }
        out += busy * calls_at(guidance_of(rank), i, at.guidance);
    }
    return out;
}

index_t composition_plan::model_calls() const {
    index_t out = 0;
    for (int rank = 0; rank < ranks; ++rank) {
        if (place_of(*this, rank).layer == 0) out += model_calls_by(rank);
    }
    return out;
}

double composition_plan::speed_up_ceiling() const {
    const auto whole = static_cast<double>(volume_of(problem.extents));
    const double path = critical_path_of(*this, [&](index_t step) {
        index_t most = 0;
        for (const latent_part& part : latent.cut_of(step).parts) {
            most = std::max(most, part.window.volume());
        }
        return static_cast<double>(most) / whole;
    });
    return static_cast<double>(serial_evaluations() * shape.degree("ring") *
                               shape.degree("ulysses")) /
           path;
}

std::string composition_plan::fingerprint() const {
    std::string out =
        detail::concat("composition mesh=", shape, " simulate=", options.simulate,
                       " everywhere=", options.result_everywhere, ' ', latent.fingerprint(),
                       " rule=", options.guidance.rule.fingerprint(),
                       " wire=", name_of(guidance.front().options.wire_prediction));
    if (in_rounds()) out += ' ' + step.front().run_fingerprint();
    if (options.transformer && !forward.empty()) {
        const layer::transformer_shape& model = *options.transformer;
        out += detail::concat(" layers=", model.layers, " patch=", model.patch[0], 'x',
                              model.patch[1], 'x', model.patch[2], " output=", model.output_columns,
                              name_of(model.output_type), ' ',
                              forward.front().front().attention.fingerprint());
    }
    return out;
}

index_t composition_plan::bytes_sent_by(int rank, std::string_view axis) const {
    const place at = place_of(*this, rank);
    if (axis == "step") return in_rounds() ? step_of(rank).bytes_sent_by(at.step) : 0;
    index_t out = 0;
    if (axis == "guidance") {
        for (const index_t i : steps_of(*this, at.step)) {
            out += guidance_of(rank).step_at(i).bytes_sent_by(at.guidance);
        }
        return out;
    }
    if (axis == "ring" || axis == "ulysses") {
        if (forward.empty()) return 0;
        for (const index_t i : steps_of(*this, at.step)) {
            const std::size_t cut = latent.step_at(i).cut;
            const auto part = static_cast<std::size_t>(at.latent);
            if (latent.cuts[cut].parts[part].window.empty()) continue;
            out += calls_at(guidance_of(rank), i, at.guidance) * problem.batch *
                   forward[cut][part].bytes_sent_by(at.layer, axis);
        }
        return out;
    }
    require(axis == "latent", "the axis ", axis,
            " has no policy in this nest; use step, guidance, latent, ring or ulysses");
    for (const index_t i : steps_of(*this, at.step)) {
        out +=
            calls_at(guidance_of(rank), i, at.guidance) * latent.call_bytes_sent_by(at.latent, i);
        out += latent.relayout_bytes_sent_by(at.latent, i);
    }
    if (options.result_everywhere || at.is_first()) {
        out += latent.collection_bytes_sent_by(at.latent);
    }
    return out;
}

index_t composition_plan::bytes_sent_by(int rank) const {
    index_t out = 0;
    for (const std::string_view axis : axes) out += bytes_sent_by(rank, axis);
    return out;
}

index_t composition_plan::bytes(std::string_view axis) const {
    index_t out = 0;
    for (int rank = 0; rank < ranks; ++rank) out += bytes_sent_by(rank, axis);
    return out;
}

index_t composition_plan::bytes() const {
    index_t out = 0;
    for (const std::string_view axis : axes) out += bytes(axis);
    return out;
}

index_t composition_plan::workspace_bytes(int rank) const {
    const place at = place_of(*this, rank);
    index_t out = latent.workspace_bytes(at.latent) + guidance_of(rank).workspace_bytes();
    if (in_rounds()) return out + step_of(rank).workspace_bytes(at.step);
    index_t held = 0;
    index_t stepped = 0;
    for (index_t i = 0; i <= problem.steps; ++i) {
        held = std::max(held, latent.held(i, at.latent).volume());
        stepped =
            std::max(stepped, latent.stepped(std::min(i, problem.steps - 1), at.latent).volume());
    }
    return out + problem.noise_bytes(std::max(held, stepped)) +
           (held + (1 + problem.history_size()) * stepped) * problem.batch * problem.channels *
               size_of(problem.type);
}

std::string to_table(const composition_plan& plan) {
    std::ostringstream out;
    out << "mesh " << plan.shape << ", " << plan.ranks << (plan.ranks == 1 ? " rank" : " ranks")
        << "\n\n  axis      degree          bytes           MiB\n"
        << std::fixed << std::setprecision(2);
    for (const std::string_view axis : axes) {
        out << "  " << std::left << std::setw(8) << axis << std::right << "  " << std::setw(6)
            << plan.shape.degree(axis) << "  " << std::setw(13) << plan.bytes(axis) << "  "
            << std::setw(12) << mebibytes(plan.bytes(axis)) << '\n';
    }
    out << "  all       " << std::setw(6) << plan.ranks << "  " << std::setw(13) << plan.bytes()
        << "  " << std::setw(12) << mebibytes(plan.bytes())
        << "\n\n  rank  step  guidance  latent  layers  model calls  sent MiB  workspace MiB\n";
    for (int rank = 0; rank < plan.ranks; ++rank) {
        const place at = place_of(plan, rank);
        out << "  " << std::setw(4) << rank << "  " << std::setw(4) << at.step << "  "
            << std::setw(8) << at.guidance << "  " << std::setw(6) << at.latent << "  "
            << std::setw(6) << at.layer << "  " << std::setw(11) << plan.model_calls_by(rank)
            << "  " << std::setw(8) << mebibytes(plan.bytes_sent_by(rank)) << "  " << std::setw(13)
            << mebibytes(plan.workspace_bytes(rank)) << '\n';
    }
    out << "\nguided predictions  " << plan.critical_path_calls() << " on the critical path, "
        << plan.problem.steps << " on one rank\nmodel calls         "
        << plan.critical_path_evaluations() << " on the critical path, "
        << plan.serial_evaluations() << " on one rank, " << plan.model_calls()
        << " in all\nspeed-up            at most " << plan.speed_up_ceiling() << '\n';
    if (plan.in_rounds()) out << '\n' << to_table(plan.step.front());
    if (plan.shape.degree("guidance") > 1) out << '\n' << to_table(plan.guidance.front());
    if (plan.shape.degree("latent") > 1) out << '\n' << to_table(plan.latent);
    return std::move(out).str();
}

}  // namespace latpar::inline v0

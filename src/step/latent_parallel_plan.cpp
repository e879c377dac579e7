// SPDX-License-Identifier: Apache-2.0
// LatentParallel, planned: who denoises which box at which step, and what travels.
#include <schedule/check_problem.hpp>
#include <step/latent_parallel_phases.hpp>

#include <algorithm>
#include <map>
#include <tuple>

namespace latpar::inline v0 {
namespace {

using detail::boxes_of_ranks;
using detail::check_problem;
using detail::check_sampling_type;
using detail::concat;
using detail::narrowed;
using detail::phases_of_kind;
using detail::require;

constexpr int max_parts = 1024;

void check(const latent_problem& problem, const latent_parallel_options& options, int ranks) {
    require(ranks >= 1, "LatentParallel was planned for ", ranks, " ranks; it needs 1 or more");
    require(std::max(options.parts, ranks) <= max_parts, std::max(options.parts, ranks),
            " parts were asked for; at most ", max_parts, " are planned");
    for (const axis a : all_axes) {
        const index_t extent = problem.extents[index_of(a)];
        const index_t patch = options.patch[index_of(a)];
        require(patch >= 1, "the patch along ", name_of(a), " is ", patch,
                "; it must be 1 or more");
        require(extent >= 1 && extent % patch == 0, "the latent's extent ", extent, " along ",
                name_of(a), " is not a positive multiple of the patch ", patch,
                "; choose one that is, such as ",
                std::max<index_t>(1, (extent + patch / 2) / patch) * patch);
    }
    check_problem(problem, max_parts);
    require(options.overlap >= 0, "the overlap is ", options.overlap, "; it must be 0 or more");
    require(options.parts >= 0, options.parts, " parts were asked for; use 0 for one a rank");
    require(options.parts == 0 || options.parts == ranks || ranks == 1, options.parts,
            " parts cannot be spread on ", ranks,
            " ranks; use as many parts as ranks, or one rank");
    require(!options.rotation.empty(), "the rotation names no axis; it needs one of T, H, W");
    check_sampling_type(options.wire_prediction);
    check_sampling_type(options.wire_state);
    require(
        problem.channels == problem.prediction_channels || options.layout != latent_layout::sharded,
        "a prediction of ", problem.prediction_channels, " channels for a latent of ",
        problem.channels, " cannot be stepped in the layout sharded; use replicated or central");
    require(
        problem.elementwise || options.layout != latent_layout::sharded,
        "this scheduler is not elementwise: it cannot step parts of a latent apart as the layout "
        "sharded does; use replicated or central");
}

/// The stitching weight of each position of a part, before normalisation.
std::vector<double> ramp(const axis_part& part, index_t patch) {
    const index_t front = (part.core_begin - part.begin) * patch;
    const index_t core = (part.core_end - part.core_begin) * patch;
    const index_t rear = (part.end - part.core_end) * patch;
    std::vector<double> out;
    for (index_t i = 1; i <= front; ++i)
        out.push_back(static_cast<double>(i) / static_cast<double>(front));
    out.insert(out.end(), static_cast<std::size_t>(core), 1.0);
    for (index_t i = rear; i >= 1; --i)
        out.push_back(static_cast<double>(i) / static_cast<double>(rear));
    return out;
}

latent_cut make_cut(const latent_problem& problem, const latent_parallel_options& options,
                    axis along) {
    const index_t patch = options.patch[index_of(along)];
    const index_t extent = problem.extents[index_of(along)];
    const box whole = box_of(problem.extents);
    latent_cut cut{along, {}};
    std::vector<double> sums(static_cast<std::size_t>(extent), 0.0);
    std::vector<std::vector<double>> ramps;
    const auto parts =
        partition_axis(extent / patch, options.parts, options.overlap, options.cores);
    for (const axis_part& part : parts) {
        latent_part& out = cut.parts.emplace_back();
        ramps.emplace_back();
        if (part.idle()) continue;
        out.core = slab(whole, along, part.core_begin * patch, part.core_end * patch);
        out.window = slab(whole, along, part.begin * patch, part.end * patch);
        ramps.back() = ramp(part, patch);
        for (std::size_t i = 0; i < ramps.back().size(); ++i) {
            sums[static_cast<std::size_t>(part.begin * patch) + i] += ramps.back()[i];
        }
    }
    for (std::size_t k = 0; k < parts.size(); ++k) {
        for (std::size_t i = 0; i < ramps[k].size(); ++i) {
            const double sum = sums[static_cast<std::size_t>(parts[k].begin * patch) + i];
            cut.parts[k].weights.push_back(static_cast<float>(ramps[k][i] / sum));
        }
    }
    return cut;
}

/// Builds the phases of a plan whose layout, parts and cuts are settled.
class phase_builder {
public:
    explicit phase_builder(latent_parallel_plan& plan) : plan_(plan) {}

    void build() {
        // Steps are alike if their cuts, the next step's, and the history that it reads are.
        std::map<std::tuple<std::size_t, bool, std::vector<bool>>, std::size_t> known;
        for (index_t i = 0; i < plan_.problem.steps; ++i) {
            const bool last = i + 1 == plan_.problem.steps;
            std::vector<bool> live;
            for (index_t k = 0; k < plan_.problem.history_size(); ++k) {
                live.push_back(plan_.problem.reads_history(i + 1, k));
            }
            const std::size_t cut = static_cast<std::size_t>(i) % plan_.cuts.size();
            const auto [at, is_new] = known.try_emplace({cut, last, live}, plan_.kinds.size());
            plan_.kind_of_step.push_back(at->second);
            if (is_new) plan_.kinds.push_back({cut, {}, {}, {}, {}, {}});
        }
        if (plan_.ranks == 1) return;
        std::vector<bool> built(plan_.kinds.size());
        for (index_t i = 0; i < plan_.problem.steps; ++i) {
            const std::size_t kind = plan_.kind_of_step[static_cast<std::size_t>(i)];
            if (built[kind]) continue;
            built[kind] = true;
            latent_parallel_step& step = plan_.kinds[kind];
            step.scatter = scatter(i);
            step.predictions = predictions(i);
            step.spread = spread(i);
            if (plan_.options.layout == latent_layout::sharded && i + 1 < plan_.problem.steps) {
                move(i, step);
            }
        }
        plan_.collection = plan_.collect(plan_.problem.steps);
    }

private:
    transfer_phase phase(std::string name, index_t channels, dtype wire) const {
        return {std::move(name), plan_.problem.batch * channels, wire, {}};
    }
    std::vector<box> stepped(index_t i) const {
        return boxes_of_ranks(plan_.ranks, [&](int rank) { return plan_.stepped(i, rank); });
    }

    transfer_phase scatter(index_t i) const {
        transfer_phase out = phase("scatter", plan_.problem.channels, plan_.options.wire_state);
        if (plan_.options.layout != latent_layout::central) return out;
        const auto& parts = plan_.cut_of(i).parts;
        for (int to = 1; to < plan_.ranks; ++to) {
            const box& window = parts[static_cast<std::size_t>(to)].window;
            if (!window.empty()) out.transfers.push_back({0, to, window});
        }
        return out;
    }

    transfer_phase predictions(index_t i) const {
        transfer_phase out =
            phase("predictions", plan_.problem.prediction_channels, plan_.options.wire_prediction);
        const auto& parts = plan_.cut_of(i).parts;
        for (int to = 0; to < plan_.ranks; ++to) {
            const box target = plan_.options.layout == latent_layout::central
                                   ? plan_.stepped(i, to)
                                   : parts[static_cast<std::size_t>(to)].core;
            for (int from = 0; from < plan_.ranks; ++from) {
                const box common = intersect(parts[static_cast<std::size_t>(from)].window, target);
                if (from != to && !common.empty()) out.transfers.push_back({from, to, common});
            }
        }
        return out;
    }

    transfer_phase spread(index_t i) const {
        transfer_phase out =
            phase("spread", plan_.problem.prediction_channels, plan_.options.wire_prediction);
        if (plan_.options.layout != latent_layout::replicated) return out;
        const auto& parts = plan_.cut_of(i).parts;
        const auto cores = boxes_of_ranks(
            plan_.ranks, [&](int rank) { return parts[static_cast<std::size_t>(rank)].core; });
        out.transfers = plan_relayout(cores, stepped(i));
        return out;
    }

    void move(index_t i, latent_parallel_step& step) const {
        const auto now = stepped(i);
        step.move_state = phase("move z", plan_.problem.channels, plan_.options.wire_state);
        step.move_state.transfers = plan_relayout(
            now, boxes_of_ranks(plan_.ranks, [&](int rank) { return plan_.held(i + 1, rank); }));
        for (index_t k = 0; k < plan_.problem.history_size(); ++k) {
            transfer_phase& out = step.move_history.emplace_back(phase(
                concat("move history ", k), plan_.problem.channels, plan_.options.wire_state));
            if (plan_.problem.reads_history(i + 1, k))
                out.transfers = plan_relayout(now, stepped(i + 1));
        }
    }

    latent_parallel_plan& plan_;
};

/// Adds what each rank sends and receives in the run.
void count_traffic(latent_parallel_plan& plan) {
    plan.sent_bytes.assign(static_cast<std::size_t>(plan.ranks), 0);
    plan.received_bytes = plan.sent_bytes;
    const auto count = [&](const transfer_phase& phase, index_t times) {
        for (const transfer& t : phase.transfers) {
            plan.sent_bytes[static_cast<std::size_t>(t.from)] += times * phase.bytes_of(t);
            plan.received_bytes[static_cast<std::size_t>(t.to)] += times * phase.bytes_of(t);
        }
    };
    std::vector<index_t> times(plan.kinds.size());
    for (const std::size_t kind : plan.kind_of_step) ++times[kind];
    for (std::size_t kind = 0; kind < plan.kinds.size(); ++kind) {
        for (const transfer_phase* phase : phases_of_kind(plan.kinds[kind]))
            count(*phase, times[kind]);
    }
    for (const transfer_phase& phase : plan.collection) count(phase, 1);
}

latent_parallel_plan plan_layout(latent_parallel_plan plan, latent_layout layout) {
    plan.options.layout = layout;
    phase_builder(plan).build();
    count_traffic(plan);
    return plan;
}

}  // namespace

latent_parallel_plan plan_latent_parallel(const latent_problem& problem,
                                          latent_parallel_options options, int ranks) {
    check(problem, options, ranks);
    if (options.parts == 0) options.parts = ranks;
    if (options.parts == 1) options.overlap = 0;
    options.wire_prediction = narrowed(options.wire_prediction, problem.type);
    options.wire_state = narrowed(options.wire_state, problem.type);
    std::vector<axis> axes = options.rotation;
    std::erase_if(
        axes, [&](axis a) { return problem.extents[index_of(a)] == options.patch[index_of(a)]; });
    require(!axes.empty() || options.parts == 1,
            "every axis of the rotation has a single patch: nothing can be cut into ",
            options.parts, " parts; name another axis, or use one part");
    if (axes.empty()) axes.push_back(options.rotation.front());
    options.rotation = axes;

    latent_parallel_plan plan{problem, options, ranks, {}, {}, {}, {}, {}, {}};
    for (const axis a : axes) plan.cuts.push_back(make_cut(problem, options, a));
    if (options.layout != latent_layout::automatic)
        return plan_layout(std::move(plan), options.layout);

    latent_parallel_plan best = plan_layout(plan, latent_layout::replicated);
    for (const latent_layout layout : {latent_layout::sharded, latent_layout::central}) {
        if (layout == latent_layout::sharded &&
            !(problem.elementwise && problem.channels == problem.prediction_channels)) {
            continue;
        }
        latent_parallel_plan other = plan_layout(plan, layout);
        if (other.busiest_bytes() < best.busiest_bytes()) best = std::move(other);
    }
    return best;
}

}  // namespace latpar::inline v0

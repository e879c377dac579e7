// SPDX-License-Identifier: Apache-2.0
// ParaStep, planned.
#include <latpar/core/memory.hpp>
#include <latpar/loop/para_step_plan.hpp>

#include <core/mebibytes.hpp>
#include <schedule/check_problem.hpp>

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace latpar::inline v0::loop {

using latpar::detail::mebibytes;
using latpar::detail::require;

namespace {

constexpr int max_degree = 1024;

void check(const latent_problem& problem, const para_step_options& options, int ranks) {
    require(ranks >= 1, "ParaStep was planned for ", ranks, " ranks; it needs 1 or more");
    require(options.degree >= 0 && options.degree <= max_degree, "rounds of ", options.degree,
            " steps were asked for; use 0 (one step a rank) to ", max_degree);
    require(ranks <= max_degree, "ParaStep was planned for ", ranks, " ranks; use at most ",
            max_degree);
    require(options.degree == 0 || options.degree == ranks || ranks == 1, "rounds of ",
            options.degree, " steps cannot be spread on ", ranks,
            " ranks; use as many steps as ranks, or one rank");
    latpar::detail::check_problem(problem, max_degree);
    latpar::detail::check_sampling_type(options.wire_prediction);
    latpar::detail::check_sampling_type(options.wire_state);
    require(options.warm_up >= 1 && options.warm_up <= problem.steps, "a warm-up of ",
            options.warm_up, " steps was asked for; use 1 to ", problem.steps,
            ", the steps of the schedule");
    require(problem.channels == problem.prediction_channels, "a prediction of ",
            problem.prediction_channels, " channels cannot step a latent of ", problem.channels,
            "; use a model that predicts as many");
    if (options.held) {
        require(contains(box_of(problem.extents), *options.held), "the held box ", *options.held,
                " does not lie within the latent ", box_of(problem.extents));
    }
}

index_t elements(const latent_problem& problem, const para_step_options& options) {
    return problem.batch * problem.channels * options.held->volume();
}

/// Fills in the messages of a plan whose rounds are settled.
void plan_messages(para_step_plan& plan) {
    const index_t count = elements(plan.problem, plan.options);
    if (plan.ranks == 1 || count == 0) return;
    const index_t prediction = count * size_of(plan.options.wire_prediction);
    const index_t state = count * size_of(plan.options.wire_state);
    const int p = plan.ranks;
    for (std::size_t k = 0; k < plan.rounds.size(); ++k) {
        para_step_round& round = plan.rounds[k];
        for (int r = 1; r < static_cast<int>(round.count); ++r) {
            round.predictions.push_back({r, 0, -1, prediction});
        }
        if (k + 1 == plan.rounds.size()) break;
        // The older first. Rank 0 calls the model at once, and reuses nothing.
        for (int from = p - plan.kept_predictions(); from < p; ++from) {
            for (int to = 1; to < p; ++to) {
                if (to != from) round.reused.push_back({from, to, -1, prediction});
            }
        }
        for (int to = 1; to < p; ++to) {
            round.state.push_back({0, to, -1, state});
            if (plan.options.history == history::official) continue;
            for (index_t h = 0; h < plan.problem.history_size(); ++h) {
                if (plan.problem.reads_history(round.first + round.count, h)) {
                    round.state.push_back({0, to, static_cast<int>(h), state});
                }
            }
        }
    }
    if (!plan.options.result_everywhere || plan.rounds.empty()) return;
    for (int to = 1; to < p; ++to) {
        plan.result.push_back({0, to, -1, count * size_of(plan.problem.type)});
    }
}

template <class F>
void for_each_message(const para_step_plan& plan, std::size_t rounds_done, F&& f) {
    for (std::size_t k = 0; k < rounds_done; ++k) {
        const para_step_round& round = plan.rounds[k];
        for (const auto* list : {&round.predictions, &round.reused, &round.state}) {
            for (const para_step_message& m : *list) f(m);
        }
    }
    if (rounds_done < plan.rounds.size()) return;
    for (const para_step_message& m : plan.result) f(m);
}

}  // namespace

std::string_view name_of(history kind) noexcept {
    return kind == history::official ? "official" : "shared";
}

std::string_view name_of(reuse kind) noexcept {
    constexpr std::array<std::string_view, 3> names{"own", "newest", "extrapolated"};
    return names[static_cast<std::size_t>(kind)];
}

para_step_plan plan_para_step(const latent_problem& problem, para_step_options options, int ranks) {
    check(problem, options, ranks);
    if (options.degree == 0) options.degree = ranks;
    if (!options.held) options.held = box_of(problem.extents);
    options.wire_prediction = latpar::detail::narrowed(options.wire_prediction, problem.type);
    options.wire_state = latpar::detail::narrowed(options.wire_state, problem.type);
    para_step_plan plan{problem, options, ranks, {}, {}};
    for (index_t i = options.warm_up; i < problem.steps; i += options.degree) {
        plan.rounds.push_back(
            {i, std::min<index_t>(options.degree, problem.steps - i), {}, {}, {}});
    }
    plan_messages(plan);
    return plan;
}

index_t para_step_plan::critical_path_calls() const {
    return options.warm_up + static_cast<index_t>(rounds.size());
}

std::vector<index_t> para_step_plan::steps_of(int rank) const {
    std::vector<index_t> out;
    for (index_t i = 0; i < options.warm_up; ++i) out.push_back(i);
    for (const para_step_round& round : rounds) {
        for (index_t r = 0; r < round.count; ++r) {
            if (simulated() || r == rank) out.push_back(round.first + r);
        }
    }
    return out;
}

index_t para_step_plan::calls_by(int rank) const {
    return static_cast<index_t>(steps_of(rank).size());
}

index_t para_step_plan::denoiser_calls() const {
    return ranks * options.warm_up + problem.steps - options.warm_up;
}

double para_step_plan::speed_up_ceiling() const {
    return static_cast<double>(problem.steps) / static_cast<double>(critical_path_calls());
}

index_t para_step_plan::bytes() const {
    return bytes_after(rounds.size());
}

index_t para_step_plan::bytes_after(std::size_t rounds_done) const {
    index_t out = 0;
    for_each_message(*this, rounds_done, [&](const para_step_message& m) { out += m.bytes; });
    return out;
}

index_t para_step_plan::bytes_sent_by(int rank) const {
    index_t out = 0;
    for_each_message(*this, rounds.size(),
                     [&](const para_step_message& m) { out += m.from == rank ? m.bytes : 0; });
    return out;
}

index_t para_step_plan::bytes_received_by(int rank) const {
    index_t out = 0;
    for_each_message(*this, rounds.size(),
                     [&](const para_step_message& m) { out += m.to == rank ? m.bytes : 0; });
    return out;
}

index_t para_step_plan::paper_bytes() const {
    index_t latents = 0;
    for (const para_step_round& round : rounds) latents += 2 * (round.count - 1) + degree() - 1;
    return latents * elements(problem, options) * 4;
}

index_t para_step_plan::workspace_bytes(int rank) const {
    const index_t count = elements(problem, options);
    const index_t prediction = count * size_of(options.wire_prediction);
    const index_t members = simulated() ? degree() : 1;
    index_t out = members * (2 + problem.history_size()) * count * size_of(problem.type) +
                  problem.noise_bytes(options.held->volume());
    if (rounds.empty()) return out;
    if (simulated() || rank > 0) out += kept_predictions() * prediction;
    if (simulated()) return out;
    if (rank == 0) out += (degree() - 1) * prediction;
    if (rounds_predictions() && sends_predictions(rank)) out += prediction;
    if (rounds_state()) out += (1 + problem.history_size()) * count * size_of(options.wire_state);
    return out;
}

std::string para_step_plan::fingerprint() const {
    return latpar::detail::concat(run_fingerprint(), " ranks=", ranks, " held=", *options.held);
}

std::string para_step_plan::run_fingerprint() const {
    return latpar::detail::concat(
        "para_step ", problem.fingerprint(), " degree=", degree(), " warm-up=", options.warm_up,
        ' ', name_of(options.history), ' ', name_of(options.reuse),
        " wire=", latpar::name_of(options.wire_prediction), '/',
        latpar::name_of(options.wire_state), " everywhere=", options.result_everywhere);
}

std::string to_table(const para_step_plan& plan) {
    std::ostringstream out;
    out << "ParaStep: " << plan.problem.steps << " steps, warm-up " << plan.options.warm_up
        << ", rounds of " << plan.degree() << " on " << plan.ranks
        << (plan.ranks == 1 ? " rank" : " ranks") << "\nreuse " << name_of(plan.options.reuse)
        << ", history " << name_of(plan.options.history) << ", predictions travel as "
        << name_of(plan.options.wire_prediction) << ", state as "
        << name_of(plan.options.wire_state) << "\n\n  rank  calls  sent MiB  received MiB"
        << "  workspace MiB\n"
        << std::fixed << std::setprecision(2);
    for (int rank = 0; rank < plan.ranks; ++rank) {
        out << "  " << std::setw(4) << rank << "  " << std::setw(5) << plan.calls_by(rank) << "  "
            << std::setw(8) << mebibytes(plan.bytes_sent_by(rank)) << "  " << std::setw(12)
            << mebibytes(plan.bytes_received_by(rank)) << "  " << std::setw(13)
            << mebibytes(plan.workspace_bytes(rank)) << '\n';
    }
    out << "\ndenoiser calls   " << plan.critical_path_calls() << " on the critical path, "
        << plan.denoiser_calls() << " in all, " << plan.problem.steps
        << " on one rank\nspeed-up         at most " << plan.speed_up_ceiling()
        << "\nbytes            " << plan.bytes() << " = " << mebibytes(plan.bytes())
        << " MiB\nthe paper's code sends " << plan.paper_bytes() << " = "
        << mebibytes(plan.paper_bytes()) << " MiB\n";
    return std::move(out).str();
}

int para_step_plan::kept_predictions() const noexcept {
    if (degree() == 1 || options.reuse == reuse::own) return 0;
    return options.reuse == reuse::newest ? 1 : 2;
}

bool para_step_plan::sends_predictions(int rank) const noexcept {
    return rank > 0 || degree() - kept_predictions() <= 0;
}

}  // namespace latpar::inline v0::loop

// SPDX-License-Identifier: Apache-2.0
// Guidance on several ranks, planned.
#include <latpar/core/memory.hpp>
#include <latpar/step/guidance_parallel_plan.hpp>

#include <core/mebibytes.hpp>
#include <schedule/check_problem.hpp>

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace latpar::inline v0 {

using detail::check_problem;
using detail::check_sampling_type;
using detail::concat;
using detail::mebibytes;
using detail::narrowed;
using detail::require;

namespace {

void check(const latent_problem& problem, const guidance_parallel_options& options, int ranks) {
    const auto branches = static_cast<int>(options.rule.branches().size());
    require(ranks >= 1, "guidance was planned for ", ranks, " ranks; it needs 1 or more");
    require(ranks <= branches, "guidance was planned for ", ranks, " ranks, its rule has ",
            branches, " branches, and a rank calls the model for one at least; use 1 to ", branches,
            " ranks");
    require(options.degree == 0 || options.degree == ranks ||
                (ranks == 1 && options.degree > 0 && options.degree <= branches),
            "guidance of degree ", options.degree, " was planned for ", ranks,
            " ranks; use 0, or one rank that simulates 1 to ", branches);
    check_problem(problem, 4);
    check_sampling_type(options.wire_prediction);
    if (const auto complaint = options.rule.complaint_about(problem.steps)) {
        throw usage_error(*complaint);
    }
    const auto boxes = static_cast<index_t>(options.predicted.size());
    require(boxes <= 1 || boxes == problem.steps, "guidance was planned with ", boxes,
            " predicted boxes for ", problem.steps, " steps; give one for each, or one for all");
    for (const box& b : options.predicted) {
        require(contains(box_of(problem.extents), b), "the predicted box ", b,
                " does not lie within the latent ", box_of(problem.extents));
    }
}

index_t total(const guidance_parallel_plan& plan, auto&& of_step) {
    index_t out = 0;
    for (const guidance_parallel_step& step : plan.steps) out += of_step(step);
    return out;
}

}  // namespace

index_t guidance_parallel_step::bytes_sent_by(int rank) const {
    if (!shares()) return 0;
    const auto own = static_cast<index_t>(calls[static_cast<std::size_t>(rank)].size());
    return own * (static_cast<index_t>(calls.size()) - 1) * prediction_bytes;
}

index_t guidance_parallel_step::bytes_received_by(int rank) const {
    if (!shares()) return 0;
    index_t others = 0;
    for (std::size_t r = 0; r < calls.size(); ++r) {
        if (static_cast<int>(r) != rank) others += static_cast<index_t>(calls[r].size());
    }
    return others * prediction_bytes;
}

index_t guidance_parallel_step::bytes() const {
    index_t out = 0;
    for (std::size_t r = 0; r < calls.size(); ++r) out += bytes_sent_by(static_cast<int>(r));
    return out;
}

index_t guidance_parallel_step::critical_path_calls() const {
    std::size_t most = 0;
    for (const auto& own : calls) most = std::max(most, own.size());
    return static_cast<index_t>(most);
}

bool guidance_parallel_step::shares() const {
    // Where a single branch counts, all ranks call it; otherwise no two call the same.
    return calls.size() > 1 && calls[0] != calls[1];
}

box guidance_parallel_plan::predicted_at(index_t step) const {
    const auto& boxes = options.predicted;
    if (boxes.empty()) return box_of(problem.extents);
    return boxes.size() == 1 ? boxes[0] : boxes[static_cast<std::size_t>(step)];
}

index_t guidance_parallel_plan::bytes() const {
    return total(*this, [](const auto& step) { return step.bytes(); });
}

index_t guidance_parallel_plan::bytes_sent_by(int rank) const {
    return total(*this, [&](const auto& step) { return step.bytes_sent_by(rank); });
}

index_t guidance_parallel_plan::bytes_received_by(int rank) const {
    return total(*this, [&](const auto& step) { return step.bytes_received_by(rank); });
}

index_t guidance_parallel_plan::critical_path_calls() const {
    return total(*this, [](const auto& step) { return step.critical_path_calls(); });
}

index_t guidance_parallel_plan::serial_calls() const {
    index_t out = 0;
    for (index_t i = 0; i < problem.steps; ++i) {
        out += static_cast<index_t>(options.rule.live_branches(i).size());
    }
    return out;
}

index_t guidance_parallel_plan::workspace_bytes() const {
    index_t most = 0;
    const auto branches = static_cast<index_t>(options.rule.branches().size());
    for (const guidance_parallel_step& step : steps) {
        most = std::max(most, detail::aligned(step.prediction_bytes));
    }
    return branches * most;
}

std::string guidance_parallel_plan::fingerprint() const {
    std::ostringstream out;
    out << "guidance_parallel " << problem.fingerprint() << " ranks=" << ranks
        << " rule=" << options.rule.fingerprint() << " degree=" << options.degree
        << " wire=" << name_of(options.wire_prediction)
        << " everywhere=" << options.result_everywhere << " predicted=";
    for (const box& b : options.predicted) out << b << ' ';
    return std::move(out).str();
}

guidance_parallel_plan plan_guidance_parallel(const latent_problem& problem,
                                              guidance_parallel_options options, int ranks) {
    check(problem, options, ranks);
    options.wire_prediction = narrowed(options.wire_prediction, problem.type);
    if (options.degree == 0) options.degree = ranks;
    guidance_parallel_plan plan{problem, std::move(options), ranks, {}};
    const index_t element = problem.batch * problem.prediction_channels *
                            size_of(plan.rounds() ? plan.options.wire_prediction : problem.type);
    for (index_t i = 0; i < problem.steps; ++i) {
        const std::vector<int> live = plan.options.rule.live_branches(i);
        const int count = static_cast<int>(live.size());
        guidance_parallel_step& step = plan.steps.emplace_back();
        step.prediction_bytes = plan.predicted_at(i).volume() * element;
        for (int rank = 0; rank < ranks; ++rank) {
            const int first = count == 1 ? 0 : rank * count / ranks;
            const int last = count == 1 ? 1 : (rank + 1) * count / ranks;
            step.calls.emplace_back(live.begin() + first, live.begin() + last);
        }
    }
    return plan;
}

std::string to_table(const guidance_parallel_plan& plan) {
    std::ostringstream out;
    out << "guidance: " << plan.options.rule.branches().size() << " branches (";
    for (std::size_t k = 0; k < plan.options.rule.branches().size(); ++k) {
        out << (k ? ", " : "") << name_of(plan.options.rule.branches()[k]);
    }
    out << ") on " << plan.ranks << (plan.ranks == 1 ? " rank" : " ranks")
        << ", predictions travel as " << name_of(plan.options.wire_prediction) << '\n'
        << "model calls      " << plan.critical_path_calls() << " on the critical path, "
        << plan.serial_calls() << " on one rank\n"
        << "bytes            " << plan.bytes() << " = " << std::fixed << std::setprecision(2)
        << mebibytes(plan.bytes()) << " MiB\n";
    return std::move(out).str();
}

}  // namespace latpar::inline v0

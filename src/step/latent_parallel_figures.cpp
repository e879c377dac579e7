// SPDX-License-Identifier: Apache-2.0
// What a plan of LatentParallel says of itself: holdings, bytes, work, memory.
#include <latpar/core/memory.hpp>

#include <step/latent_parallel_phases.hpp>

#include <algorithm>
#include <array>
#include <iomanip>
#include <limits>
#include <numeric>
#include <sstream>

namespace latpar::inline v0 {

using detail::boxes_of_ranks;
using detail::concat;
using detail::phases_of_kind;

namespace {

/// Enough digits to tell any two numbers apart.
std::string exact(double value) {
    std::ostringstream out;
    out << std::setprecision(std::numeric_limits<double>::max_digits10) << value;
    return std::move(out).str();
}

}  // namespace

std::string_view name_of(latent_layout layout) noexcept {
    constexpr std::array<std::string_view, 4> names{"automatic", "central", "replicated",
                                                    "sharded"};
    return names[static_cast<std::size_t>(layout)];
}

std::string_view name_of(partition kind) noexcept {
    return kind == partition::paper ? "paper" : "balanced";
}

box latent_parallel_plan::held(index_t step, int rank) const {
    const box whole = box_of(problem.extents);
    if (ranks == 1 || options.layout == latent_layout::replicated) return whole;
    if (options.layout == latent_layout::central) return rank == 0 ? whole : box{};
    if (step == problem.steps) return stepped(step - 1, rank);
    return cut_of(step).parts[static_cast<std::size_t>(rank)].window;
}

box latent_parallel_plan::stepped(index_t step, int rank) const {
    if (ranks == 1 || options.layout != latent_layout::sharded) return held(step, rank);
    return cut_of(step).parts[static_cast<std::size_t>(rank)].core;
}

std::vector<transfer_phase> latent_parallel_plan::collect(index_t step) const {
    const box whole = box_of(problem.extents);
    const auto transfers =
        plan_relayout(boxes_of_ranks(ranks, [&](int rank) { return held(step, rank); }),
                      boxes_of_ranks(ranks, [&](int rank) {
                          return rank == 0 || options.result_everywhere ? whole : box{};
                      }));
    std::vector<transfer_phase> out(
        static_cast<std::size_t>(ranks),
        {"collect", problem.batch * problem.channels, problem.type, {}});
    for (const transfer& t : transfers) {
        out[static_cast<std::size_t>(t.from)].transfers.push_back(t);
    }
    std::erase_if(out, [](const transfer_phase& phase) { return phase.transfers.empty(); });
    return out;
}

std::vector<const transfer_phase*> latent_parallel_plan::phases_of(index_t step) const {
    return phases_of_kind(step_at(step));
}

index_t latent_parallel_plan::bytes_after(index_t count) const {
    index_t out = 0;
    for (index_t i = 0; i < count; ++i) {
        for (const transfer_phase* phase : phases_of(i)) out += phase->bytes();
    }
    for (const transfer_phase& phase : collect(count)) out += phase.bytes();
    return out;
}

index_t latent_parallel_plan::call_bytes_sent_by(int rank, index_t step) const {
    const latent_parallel_step& kind = step_at(step);
    return kind.scatter.bytes_sent_by(rank) + kind.predictions.bytes_sent_by(rank) +
           kind.spread.bytes_sent_by(rank);
}

index_t latent_parallel_plan::relayout_bytes_sent_by(int rank, index_t step) const {
    const latent_parallel_step& kind = step_at(step);
    index_t out = kind.move_state.bytes_sent_by(rank);
    for (const transfer_phase& phase : kind.move_history) out += phase.bytes_sent_by(rank);
    return out;
}

index_t latent_parallel_plan::collection_bytes_sent_by(int rank) const {
    index_t out = 0;
    for (const transfer_phase& phase : collection) out += phase.bytes_sent_by(rank);
    return out;
}

index_t latent_parallel_plan::busiest_bytes() const {
    return std::max(*std::max_element(sent_bytes.begin(), sent_bytes.end()),
                    *std::max_element(received_bytes.begin(), received_bytes.end()));
}

index_t latent_parallel_plan::paper_bytes() const {
    index_t positions = 0;
    for (index_t i = 0; i < problem.steps; ++i) {
        positions += volume_of(problem.extents);
        for (const latent_part& part : cut_of(i).parts) positions += 2 * part.window.volume();
    }
    return positions * problem.batch * problem.channels * 4;
}

index_t latent_parallel_plan::denoiser_calls() const {
    index_t out = 0;
    for (index_t i = 0; i < problem.steps; ++i) {
        for (const latent_part& part : cut_of(i).parts) out += part.window.empty() ? 0 : 1;
    }
    return out;
}

double latent_parallel_plan::critical_fraction() const {
    index_t positions = 0;
    for (index_t i = 0; i < problem.steps; ++i) {
        index_t largest = 0;
        index_t all = 0;
        for (const latent_part& part : cut_of(i).parts) {
            largest = std::max(largest, part.window.volume());
            all += part.window.volume();
        }
        positions += simulated() ? all : largest;
    }
    return static_cast<double>(positions) /
           static_cast<double>(problem.steps * volume_of(problem.extents));
}

index_t latent_parallel_plan::workspace_bytes(int rank) const {
    const latent_parallel_workspace space = workspace(rank);
    return space.part + space.prediction +
           std::accumulate(space.messages.begin(), space.messages.end(), index_t{0});
}

latent_parallel_workspace latent_parallel_plan::workspace(int rank) const {
    const index_t element = problem.batch * size_of(problem.type);
    const bool rounded =
        options.layout == latent_layout::central && options.wire_state != problem.type;
    // Whether the part of z that is denoised lies in memory of its own.
    const auto apart = [&](const box& window) {
        return rounded || rank > 0 || window != box_of(problem.extents);
    };
    latent_parallel_workspace out;
    out.messages.assign(static_cast<std::size_t>(1 + problem.history_size()), 0);
    const auto grow = [](index_t& bytes, index_t needed) { bytes = std::max(bytes, needed); };
    for (const latent_cut& cut : cuts) {
        index_t predictions = 0;
        for (std::size_t k = 0; k < cut.parts.size(); ++k) {
            const box& window = cut.parts[k].window;
            if (ranks > 1 && static_cast<int>(k) != rank) continue;
            if (!(ranks > 1 && options.layout == latent_layout::sharded) && apart(window)) {
                grow(out.part, window.volume() * problem.channels * element);
            }
            predictions += window.volume() * problem.prediction_channels * element;
            if (ranks == 1) predictions = detail::aligned(predictions);
        }
        // A part that is all of the latent is predicted in place.
        if (parts() > 1) grow(out.prediction, predictions);
    }
    for (const latent_parallel_step& step : kinds) {
        for (const transfer_phase* phase :
             {&step.scatter, &step.predictions, &step.spread, &step.move_state}) {
            grow(out.messages[0], phase->buffer_bytes(rank));
        }
        for (std::size_t k = 0; k < step.move_history.size(); ++k) {
            grow(out.messages[k + 1], step.move_history[k].buffer_bytes(rank));
        }
    }
    // A run may be stopped, and collected, before any step.
    for (index_t i = 0; i < std::min(problem.steps, static_cast<index_t>(cuts.size())); ++i) {
        for (const transfer_phase& phase : collect(i))
            grow(out.messages[0], phase.buffer_bytes(rank));
    }
    for (const transfer_phase& phase : collection) grow(out.messages[0], phase.buffer_bytes(rank));
    return out;
}

std::string latent_parallel_plan::fingerprint() const {
    std::string rotation;
    for (const axis a : options.rotation) rotation += name_of(a);
    return concat("latent_parallel ", problem.fingerprint(), " ranks=", ranks, " parts=", parts(),
                  " overlap=", exact(options.overlap), " patch=", box_of(options.patch),
                  " cores=", name_of(options.cores), " layout=", name_of(options.layout),
                  " wire=", name_of(options.wire_prediction), '/', name_of(options.wire_state),
                  " rotation=", rotation, " everywhere=", options.result_everywhere);
}

}  // namespace latpar::inline v0

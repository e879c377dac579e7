// SPDX-License-Identifier: Apache-2.0
// DualParal, planned.
#include <latpar/core/memory.hpp>
#include <latpar/loop/dual_paral_plan.hpp>

#include <core/mebibytes.hpp>
#include <schedule/check_problem.hpp>

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <numeric>
#include <sstream>

namespace latpar::inline v0::loop {

using latpar::detail::mebibytes;
using latpar::detail::require;

namespace {

index_t bytes_of(const hidden_signature& h) {
    return h.extents[0] * h.extents[1] * h.extents[2] * size_of(h.type);
}

void check(const latent_problem& problem, const dual_paral_options& options,
           const dual_paral_model& model, int ranks) {
    require(ranks >= 1, "DualParal was planned for ", ranks, " stages; it needs 1 or more");
    require(model.layers >= ranks, "a model of ", model.layers, " layers cannot have ", ranks,
            " stages; use at most as many as it has layers");
    require(model.branches >= 1 && model.guidance_ranks >= 1 && !model.hidden.empty(),
            "a staged model with ", model.branches, " branches on ", model.guidance_ranks,
            " pipelines and ", model.hidden.size(),
            " hidden tensors was planned; it needs one of each at least");
    require(options.block_latents >= 1, "blocks of ", options.block_latents,
            " latent frames were asked for; use 1 or more");
    require(options.cat_latents >= 0 && options.cat_latents <= options.block_latents,
            "a context of ", options.cat_latents, " latent frames was asked for; use 0 to ",
            options.block_latents, ", those of a block");
    require(options.total_latents == 0 || options.total_latents > options.cat_latents,
            "a video of ", options.total_latents,
            " latent frames was asked for; use more than the ", options.cat_latents,
            " of the context, or 0 for no end");
    require(
        options.stage_weights.empty() || static_cast<int>(options.stage_weights.size()) == ranks,
        options.stage_weights.size(), " stage weights were given for ", ranks,
        " stages; give one for each");
    for (const double w : options.stage_weights) {
        require(std::isfinite(w) && w > 0, "a stage weight is ", w,
                "; each must be positive and finite");
    }
    require(problem.batch == 1, "DualParal was planned for a batch of ", problem.batch,
            "; sample videos one by one");
    require(problem.channels == problem.prediction_channels, "a prediction of ",
            problem.prediction_channels, " channels cannot step a latent of ", problem.channels,
            "; use a model that predicts as many");
    latpar::detail::check_problem(problem, 4096);
    latpar::detail::check_sampling_type(options.wire_prediction);
}

/// Contiguous layers in proportion to the weights, one at least for each stage; alike, their
/// numbers differ by at most one.
std::vector<layer_range> split_layers(index_t layers, const std::vector<double>& weights,
                                      int ranks) {
    std::vector<layer_range> out;
    std::vector<double> shares = weights;
    if (shares.empty()) shares.assign(static_cast<std::size_t>(ranks), 1.0);
    const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
    double sum = 0;
    index_t begin = 0;
    for (int rank = 0; rank < ranks; ++rank) {
        sum += shares[static_cast<std::size_t>(rank)];
        index_t end =
            weights.empty()
                ? layers * (rank + 1) / ranks
                : static_cast<index_t>(std::llround(static_cast<double>(layers) * sum / all));
        end = std::clamp(end, begin + 1, layers - (ranks - 1 - rank));
        out.push_back({begin, end});
        begin = end;
    }
    return out;
}

}  // namespace

dual_paral_plan plan_dual_paral(const latent_problem& problem, dual_paral_options options,
                                const dual_paral_model& model, int ranks) {
    constexpr index_t most = dual_paral_plan::most_latents;
    require(options.block_latents <= most && options.cat_latents <= most &&
                options.total_latents <= most,
            "blocks of ", options.block_latents, " latent frames, ", options.cat_latents,
            " of context and ", options.total_latents, " in all were asked for; use at most ",
            most);
    latent_problem window = problem;
    window.extents[0] = std::max<index_t>(1, options.block_latents + options.cat_latents);
    check(window, options, model, ranks);
    options.wire_prediction = latpar::detail::narrowed(options.wire_prediction, problem.type);
    auto stages = split_layers(model.layers, options.stage_weights, ranks);
    return {std::move(window), std::move(options), model, ranks, std::move(stages)};
}

index_t dual_paral_plan::blocks() const noexcept {
    if (options.total_latents == 0) return -1;
    const index_t rest = options.total_latents - options.cat_latents;
    return (rest + options.block_latents - 1) / options.block_latents;
}

index_t dual_paral_plan::blocks_held() const noexcept {
    return blocks() < 0 ? steps() + 1 : std::min(steps() + 1, blocks());
}

index_t dual_paral_plan::latents_of(index_t block) const noexcept {
    return block == 0 ? window_latents() : options.block_latents;
}

index_t dual_paral_plan::first_latent_of(index_t block) const noexcept {
    return block == 0 ? 0 : options.cat_latents + block * options.block_latents;
}

box dual_paral_plan::frames_of(index_t block) const noexcept {
    return {{first_latent_of(block), 0, 0},
            {latents_of(block), problem.extents[1], problem.extents[2]}};
}

box dual_paral_plan::window_of(const dual_paral_task& task) const noexcept {
    const index_t front = task.has_front ? options.cat_latents : 0;
    box out = frames_of(task.block);
    out.origin[0] -= front;
    out.extent[0] += front;
    return out;
}

index_t dual_paral_plan::delivered_of(index_t block) const noexcept {
    if (options.total_latents == 0) return latents_of(block);
    return std::min(latents_of(block), options.total_latents - first_latent_of(block));
}

index_t dual_paral_plan::iterations() const noexcept {
    return blocks() < 0 ? -1 : blocks() + steps() - 1;
}

index_t dual_paral_plan::first_block_of(index_t iteration) const noexcept {
    return std::max<index_t>(0, iteration - steps() + 1);
}

index_t dual_paral_plan::last_block_of(index_t iteration) const noexcept {
    return blocks() < 0 ? iteration : std::min(iteration, blocks() - 1);
}

index_t dual_paral_plan::first_kept(index_t iteration) const noexcept {
    return std::max<index_t>(0, first_block_of(iteration) - 1);
}

index_t dual_paral_plan::next_block(index_t iteration) const noexcept {
    return blocks() < 0 ? iteration : std::min(iteration, blocks());
}

std::vector<dual_paral_task> dual_paral_plan::tasks_of(index_t iteration) const {
    std::vector<dual_paral_task> out;
    const index_t tail = last_block_of(iteration);
    for (index_t block = tail; block >= first_block_of(iteration); --block) {
        out.push_back({iteration, block, iteration - block, block == tail,
                       block > 0 && options.cat_latents > 0, latents_of(block)});
    }
    return out;
}

index_t dual_paral_plan::tasks_before(index_t iteration) const {
    // Every block that has begun has had a step in each iteration since, at most all of them.
    index_t out = 0;
    const index_t last = blocks() < 0 ? iteration : std::min(iteration, blocks());
    if (last <= 0) return 0;
    // Blocks that are done by then, and those that are under way.
    const index_t done = std::clamp<index_t>(iteration - steps() + 1, 0, last);
    out += done * steps();
    for (index_t block = done; block < last; ++block) out += iteration - block;
    return out;
}

index_t dual_paral_plan::needs(const dual_paral_task& task) const {
    if (task.iteration == 0) return -1;
    const index_t before = task.iteration - 1;
    // A block without context waits for nothing but the memory of one that is done.
    if (!task.has_front && task.step == 0) return tasks_before(before) - 1;
    const index_t tail = last_block_of(before);
    const index_t first = first_block_of(before);
    // Its own previous step, and that of the next-cleaner block, which comes later in the order.
    index_t wanted = task.has_front ? task.block - 1 : task.block;
    if (wanted < first) wanted = first;
    if (wanted > tail) return -1;
    return tasks_before(before) + tail - wanted;
}

index_t dual_paral_plan::hidden_bytes() const {
    index_t out = 0;
    for (const hidden_signature& h : model.hidden) out += bytes_of(h);
    return out;
}

index_t dual_paral_plan::hidden_memory() const {
    index_t out = 0;
    for (const hidden_signature& h : model.hidden) out += latpar::detail::aligned(bytes_of(h));
    return out;
}

index_t dual_paral_plan::prediction_bytes(const dual_paral_task& task) const {
    return problem.channels * task.own_latents * problem.extents[1] * problem.extents[2] *
           size_of(options.wire_prediction);
}

index_t dual_paral_plan::arrival_bytes() const {
    return window_latents() * frame_bytes() / size_of(problem.type) *
           size_of(options.wire_prediction);
}

index_t dual_paral_plan::inbox_bytes(int rank) const {
    const index_t arrivals = rank == 0 ? depth() * latpar::detail::aligned(arrival_bytes()) : 0;
    return 2 * hidden_memory() + arrivals;
}

index_t dual_paral_plan::arrival_offset(index_t task) const {
    return 2 * hidden_memory() + task % depth() * latpar::detail::aligned(arrival_bytes());
}

index_t dual_paral_plan::bytes_sent_by(int rank, index_t iterations_done) const {
    if (ranks == 1) return 0;
    index_t out = 0;
    if (rank + 1 < ranks) {
        out += tasks_before(iterations_done) * hidden_bytes() + iterations_done;
    } else {
        for (index_t i = 0; i < iterations_done; ++i) {
            for (const dual_paral_task& task : tasks_of(i)) out += prediction_bytes(task);
        }
    }
    return out;
}

index_t dual_paral_plan::guidance_bytes_sent_by(int rank, index_t iterations_done) const {
    if (rank + 1 < ranks) return 0;
    index_t frames = 0;
    for (index_t i = 0; i < iterations_done; ++i) {
        for (const dual_paral_task& task : tasks_of(i)) frames += task.own_latents;
    }
    return (model.guidance_ranks - 1) * model.branches * frames * frame_bytes();
}

index_t dual_paral_plan::bytes(index_t iterations_done) const {
    index_t out = 0;
    for (int rank = 0; rank < ranks; ++rank) {
        out += bytes_sent_by(rank, iterations_done) + guidance_bytes_sent_by(rank, iterations_done);
    }
    return model.guidance_ranks * out;
}

index_t dual_paral_plan::frame_bytes() const {
    return problem.channels * problem.extents[1] * problem.extents[2] * size_of(problem.type);
}

index_t dual_paral_plan::workspace_bytes(int rank) const {
    const index_t frame = frame_bytes();
    index_t out = 0;
    if (rank == 0) {
        out += blocks_held() * (1 + problem.history_size()) * window_latents() * frame;
        out += model.branches * window_latents() * frame;  // the window of the task that is fed
    }
    if (rank + 1 == ranks) {
        out += (model.branches + 1) * window_latents() * frame;  // predictions, and their sum
        if (model.guidance_ranks > 1) {                          // those of all branches
            out += model.guidance_ranks * model.branches * window_latents() * frame;
        }
        if (ranks > 1) out += 2 * arrival_bytes();  // what leaves
    }
    if (rank == 0) out += problem.noise_bytes(volume_of(problem.extents));
    return out + inbox_bytes(rank) + cache_bytes(rank);
}

index_t dual_paral_plan::cache_bytes(int rank) const {
    const layer_range& own = stages[static_cast<std::size_t>(rank)];
    return (own.last - own.first) * model.cache_bytes_per_layer;
}

pipeline_estimate dual_paral_plan::estimate(index_t block_count) const {
    dual_paral_plan finite = *this;
    if (finite.blocks() < 0) {
        finite.options.total_latents = options.cat_latents + block_count * options.block_latents;
    }
    pipeline_estimate out;
    const auto stages_count = static_cast<std::size_t>(ranks);
    std::vector<double> free(stages_count, 0.0);
    std::vector<double> busy(stages_count, 0.0);
    std::vector<double> returned;
    for (index_t i = 0; i < finite.iterations(); ++i) {
        for (const dual_paral_task& task : finite.tasks_of(i)) {
            const index_t needed = finite.needs(task);
            double ready = needed < 0 ? 0.0 : returned[static_cast<std::size_t>(needed)];
            for (std::size_t s = 0; s < stages_count; ++s) {
                const double time = static_cast<double>(stages[s].last - stages[s].first) /
                                    static_cast<double>(model.layers);
                ready = std::max(ready, free[s]) + time;
                free[s] = ready;
                busy[s] += time;
            }
            returned.push_back(ready);
        }
    }
    out.makespan = returned.empty() ? 0 : returned.back();
    for (const double b : busy) {
        out.idle_share.push_back(out.makespan == 0 ? 0 : 1 - b / out.makespan);
        out.mean_idle_share += out.idle_share.back() / static_cast<double>(ranks);
    }
    return out;
}

std::string dual_paral_plan::video_fingerprint() const {
    return latpar::detail::concat(
        problem.fingerprint(), " block=", options.block_latents, " cat=", options.cat_latents,
        " total=", options.total_latents, " wire=", latpar::name_of(options.wire_prediction),
        " layers=", model.layers, " branches=", model.guidance_ranks * model.branches);
}

std::string dual_paral_plan::fingerprint() const {
    std::ostringstream out;
    out << "dual_paral " << video_fingerprint() << " ranks=" << ranks << " stages=";
    for (const layer_range& s : stages) out << s.first << '-' << s.last << ',';
    out << " guidance=" << model.guidance_ranks << " hidden=";
    for (const hidden_signature& h : model.hidden) {
        out << h.extents[0] << 'x' << h.extents[1] << 'x' << h.extents[2] << ' '
            << latpar::name_of(h.type) << ',';
    }
    out << " cache=" << model.cache_bytes_per_layer;
    return std::move(out).str();
}

std::string to_table(const dual_paral_plan& plan) {
    std::ostringstream out;
    const index_t blocks = plan.blocks();
    out << "DualParal: blocks of " << plan.options.block_latents << " latents, "
        << plan.options.cat_latents << " of each neighbour, ";
    if (blocks < 0) {
        out << "no end";
    } else {
        out << plan.options.total_latents << " delivered from " << blocks << " blocks in "
            << plan.iterations() << " iterations";
    }
    const auto estimate = plan.estimate(blocks < 0 ? 2 * plan.steps() : blocks);
    out << "; " << plan.steps() << " steps, " << plan.ranks
        << (plan.ranks == 1 ? " stage" : " stages")
        << "\n\n  rank    layers  idle share  workspace MiB\n"
        << std::fixed;
    for (int rank = 0; rank < plan.ranks; ++rank) {
        const layer_range& stage = plan.stages[static_cast<std::size_t>(rank)];
        out << "  " << std::setw(4) << rank << "  " << std::setw(8)
            << latpar::detail::concat('[', stage.first, ',', stage.last, ')') << "  "
            << std::setw(9) << std::setprecision(1)
            << 100 * estimate.idle_share[static_cast<std::size_t>(rank)] << "%  " << std::setw(13)
            << std::setprecision(2) << mebibytes(plan.workspace_bytes(rank)) << '\n';
    }
    out << "\nhidden bytes from stage to stage  " << plan.hidden_bytes() << " a task\n";
    if (blocks >= 0) out << "bytes            " << plan.bytes(plan.iterations()) << '\n';
    return std::move(out).str();
}

}  // namespace latpar::inline v0::loop

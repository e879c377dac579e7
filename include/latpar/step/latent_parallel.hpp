// SPDX-License-Identifier: Apache-2.0
// LatentParallel: a denoiser that cuts the latent into overlapping parts, one a rank.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/box_exchange.hpp>
#include <latpar/comm/detail/memory_complaint.hpp>
#include <latpar/denoise/detail/spread.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/step/latent_parallel_plan.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace latpar::inline v0 {

/// A denoiser whose ranks each denoise one part of the latent, cut along another axis at every
/// step, and stitch the predictions.
///
/// It talks once a denoising step, so it suits slow links. Guidance goes inside
/// (`latent_parallel(guided(model, 4.0), ...)`): then only the guided prediction travels.
/// With one rank and `parts` above one it runs all parts in turn: the same numbers without ranks.
///
/// Ranks: all ranks of the communicator construct it and make every call, in the same order and for
/// the same step, which is not compared.
/// Stream: ordered on it; the host waits for messages.
/// Memory: `plan.workspace_bytes(rank)` from `source`, taken by the constructor. Where the layout is
/// sharded and a loop takes its memory from another resource, the latent is copied once more a step.
/// Errors: usage_error on every rank, before payload moves, if the ranks' plans differ or a loop
/// does not fit the plan. What the model throws, and a call that does not fit, aborts the
/// communicator with its message, which is of no use afterwards.
/// Source: Latent Parallelism (arXiv 2512.07350).
template <denoiser Model, communicator Comm, kernel_set Kernels = kernel::host>
class latent_parallel {
public:
    latent_parallel(Model model, Comm& comm, latent_parallel_plan plan, Kernels kernels = {},
                    memory_source source = {})
        : model_(std::move(model)),
          comm_(&comm),
          plan_(std::move(plan)),
          kernels_(std::move(kernels)) {
        agree_on(comm, "the LatentParallel plan", plan_.fingerprint());
        agree_no_error(comm, complaint_about(source));
        guarded(comm, [&] {
            const latent_parallel_workspace space = plan_.workspace(comm.rank());
            part_ = latent_block(space.part, plan_.problem.type, source);
            predictions_ = latent_block(space.prediction, plan_.problem.type, source);
            exchanges_.reserve(space.messages.size());
            for (const index_t bytes : space.messages) {
                exchanges_.emplace_back(comm, kernels_, bytes, source);
            }
        });
    }

    [[nodiscard]] const latent_parallel_plan& plan() const noexcept { return plan_; }
    [[nodiscard]] Model& model() noexcept { return model_; }
    [[nodiscard]] bool is_replicated() const noexcept {
        return plan_.options.layout == latent_layout::replicated;
    }
    [[nodiscard]] placement placement_at(index_t step) const {
        return {plan_.held(step, rank()),
                plan_.stepped(std::min(step, plan_.problem.steps - 1), rank())};
    }
    [[nodiscard]] bool any_rank(bool flag) {
        return latpar::any_rank(*comm_, inner().any_rank(flag));
    }
    /// See distributed_denoiser. Reaches the ranks of the model too, where it has some.
    void abort(std::string_view reason) {
        comm_->abort(reason);
        detail::abort_model(model_, reason);
    }

    /// See distributed_denoiser.
    void agree(const latent_problem& problem, std::string_view text) {
        detail::agree_around<Model>(*this, [&] {
            agree_no_error(*comm_, complaint_about(problem));
            agree_on(*comm_, "the loop", text);
            inner().agree(problem, text);
        });
    }

    void operator()(const_latent_view z, const step_info& info, latent_view prediction,
                    stream_ref stream) {
        guarded(*comm_, [&] {
            const index_t i = check_call(z, info);
            check_prediction(i, prediction);
            if (plan_.simulated()) {
                simulate(i, z, info, prediction, stream);
            } else {
                denoise_own_part(i, z, info, stream);
                combine(i, info.window, prediction, stream);
            }
        });
    }

    /// Whether `parts_of` serves in place of a call: where the ranks step what they stitch.
    [[nodiscard]] bool leaves_parts() const noexcept {
        return !plan_.simulated() && !is_replicated();
    }
    /// A call but for its stitch, which the scheduler's step makes on its way: what the prediction
    /// over `placement_at(step).stepped` is stitched from, valid until the next call.
    [[nodiscard]] kernel::stitched_input parts_of(const_latent_view z, const step_info& info,
                                                  stream_ref stream) {
        return guarded(*comm_, [&] {
            const index_t i = check_call(z, info);
            denoise_own_part(i, z, info, stream);
            gather_pieces(i, plan_.stepped(i, rank()), stream);
            return kernel::stitched_input{0, plan_.cut_of(i).along, plan_.problem.type, pieces_};
        });
    }

    /// See distributed_denoiser.
    void relayout(index_t step, latent_state& state, stream_ref stream) {
        if (plan_.options.layout != latent_layout::sharded) return;
        guarded(*comm_, [&] {
            if (step + 1 == plan_.problem.steps) return;
            round_state(step + 1, state, stream);
            if (plan_.ranks > 1) move(step, state, stream);
        });
    }

    /// See distributed_denoiser. `out` is [B, C, T, H, W].
    void collect(index_t step, latent_state& state, latent_view out, stream_ref stream) {
        guarded(*comm_, [&] {
            const bool gets = rank() == 0 || plan_.options.result_everywhere;
            const std::array<index_t, 5> whole = plan_.problem.latent_extents();
            detail::require(!gets || out.extents == whole, "rank ", rank(),
                            " was given a latent of ", text_of(out.extents), " to collect one of ",
                            text_of(whole), "; pass one of the same extents");
            for (const transfer_phase& phase : plan_.collect(step)) {
                exchanges_[0].start(phase, state.z.view(), state.z.where().origin, stream);
                exchanges_[0].wait_into(out, {}, stream);
            }
            if (gets) {
                const box held = placement_at(step).held;
                kernels_.copy(std::as_const(state.z).view(held), subview(out, held), stream);
            }
        });
    }

private:
    [[nodiscard]] int rank() const noexcept { return comm_->rank(); }
    [[nodiscard]] detail::spread<Model> inner() { return {model_, plan_.problem.extents}; }
    [[nodiscard]] const latent_part& own_part(index_t step) const {
        return plan_.cut_of(step).parts[static_cast<std::size_t>(rank())];
    }
    [[nodiscard]] bool rounds(dtype wire) const noexcept {
        return plan_.parts() > 1 && wire != plan_.problem.type;
    }

    [[nodiscard]] std::optional<std::string> complaint_about(const latent_problem& problem) const {
        if (problem == plan_.problem) return std::nullopt;
        return detail::concat(
            "the loop samples ", box_of(problem.extents), " of batch ", problem.batch, " and ",
            problem.channels, " channels as ", name_of(problem.type), " in ", problem.steps,
            " steps with ", problem.history_size(), " history tensors, the plan was made for ",
            box_of(plan_.problem.extents), " of batch ", plan_.problem.batch, " and ",
            plan_.problem.channels, " channels as ", name_of(plan_.problem.type), " in ",
            plan_.problem.steps, " steps with ", plan_.problem.history_size(),
            " history tensors, or for other steps that read them; plan with "
            "latent_problem::of the loop's extents and schedule");
    }

    [[nodiscard]] std::optional<std::string> complaint_about(const memory_source& source) const {
        if (plan_.ranks != comm_->size()) {
            return detail::concat("the plan is for ", plan_.ranks, " ranks, the communicator has ",
                                  comm_->size(), "; plan for its size");
        }
        return detail::memory_complaint(*comm_, kernels_, source);
    }

    [[nodiscard]] static std::string text_of(const std::array<index_t, 5>& extents) {
        return detail::concat('[', extents[0], ',', extents[1], ',', extents[2], ',', extents[3],
                              ',', extents[4], ']');
    }

    /// The step of a call that fits the plan.
    index_t check_call(const const_latent_view& z, const step_info& info) const {
        detail::require(!info.samples.empty() && std::ssize(info.samples) == plan_.problem.batch,
                        "step_info names ", info.samples.size(), " samples of a batch of ",
                        plan_.problem.batch, "; give one for each");
        const index_t i = info.samples.front().step;
        for (const sample_info& sample : info.samples) {
            detail::require(
                sample.step == i, "a batch mixes the denoising steps ", i, " and ", sample.step,
                ", which are cut along different axes; give LatentParallel one step a call");
        }
        detail::require(i >= 0 && i < plan_.problem.steps, "denoising step ", i,
                        " is not in the plan, which has ", plan_.problem.steps);
        const placement now = placement_at(i);
        detail::require(info.window == now.held, "at step ", i, " rank ", rank(),
                        " was called with a latent over ", info.window, ", its plan holds ",
                        now.held, " (layout ", name_of(plan_.options.layout), "); ",
                        is_replicated() ? "set info.window to all of the latent"
                                        : "use a loop that asks for placement_at, or the layout "
                                          "replicated");
        detail::require(covers(z, plan_.problem.channels, now.held), "at step ", i, " rank ",
                        rank(), " got a z of ", text_of(z.extents), " in ", name_of(z.type),
                        " over ", now.held, " with a batch of ", plan_.problem.batch, ", ",
                        plan_.problem.channels, " channels and ", name_of(plan_.problem.type),
                        " planned");
        bool has_frames = false;
        for (const sample_info& sample : info.samples) {
            const index_t frames = std::ssize(sample.frame_timesteps);
            has_frames = has_frames || frames > 0;
            detail::require(frames == 0 || frames == now.held.extent[0], "at step ", i, " ", frames,
                            " frame_timesteps were given for the ", now.held.extent[0],
                            " frames of the window; give one for each, or none");
        }
        for (const const_latent_view& condition : info.conditions) {
            detail::require(condition.extents[0] == plan_.problem.batch &&
                                spatial_extents(condition) == now.held.extent,
                            "at step ", i, " rank ", rank(), " got a condition of ",
                            text_of(condition.extents), " beside a z of ", text_of(z.extents),
                            "; give conditions with the batch and the window of z");
        }
        detail::require(
            (info.conditions.empty() && !has_frames) ||
                plan_.options.layout != latent_layout::central || plan_.ranks == 1,
            "the layout central carries neither spatial conditions nor timesteps of frames to the "
            "other ranks; use replicated or sharded");
        return i;
    }

    void check_prediction(index_t i, const latent_view& prediction) const {
        const box stepped = plan_.stepped(i, rank());
        detail::require(covers(prediction, plan_.problem.prediction_channels, stepped), "at step ",
                        i, " the prediction of rank ", rank(), " must cover ", stepped, " with ",
                        plan_.problem.prediction_channels, " channels in ",
                        name_of(plan_.problem.type));
    }
    template <class View>
    [[nodiscard]] bool covers(const View& view, index_t channels, const box& where) const {
        return view.type == plan_.problem.type &&
               view.extents == std::array{plan_.problem.batch, channels, where.extent[0],
                                          where.extent[1], where.extent[2]};
    }

    /// Calls the model on one part, given as views of its window.
    void call_model(const const_latent_view& z, const latent_part& part, step_info info,
                    latent_view prediction, stream_ref stream) {
        conditions_.clear();
        for (const const_latent_view& condition : info.conditions) {
            conditions_.push_back(subview(condition, relative_to(part.window, info.window.origin)));
        }
        samples_.assign(info.samples.begin(), info.samples.end());
        for (sample_info& sample : samples_) {
            if (!sample.frame_timesteps.empty()) {
                sample.frame_timesteps = sample.frame_timesteps.subspan(
                    static_cast<std::size_t>(part.window.origin[0] - info.window.origin[0]),
                    static_cast<std::size_t>(part.window.extent[0]));
            }
        }
        info.samples = samples_;
        info.conditions = conditions_;
        info.window = part.window;
        model_(z, info, prediction, stream);
        if (rounds(plan_.options.wire_prediction)) {
            kernels_.round(prediction, plan_.options.wire_prediction, stream);
        }
    }

    /// The part of z that the model sees: dense, and as the wire would deliver it.
    const_latent_view part_of(const const_latent_view& z, const box& held, const latent_part& part,
                              stream_ref stream) {
        const bool as_received =
            plan_.options.layout == latent_layout::central && rounds(plan_.options.wire_state);
        if (part.window == held && !as_received) return z;
        part_.place(plan_.problem.batch, plan_.problem.channels, part.window);
        kernels_.copy(subview(z, relative_to(part.window, held.origin)), part_.view(), stream);
        if (as_received) kernels_.round(part_.view(), plan_.options.wire_state, stream);
        return std::as_const(part_).view();
    }

    void denoise_own_part(index_t i, const const_latent_view& z, const step_info& info,
                          stream_ref stream) {
        const latent_part& part = own_part(i);
        const transfer_phase& scatter = plan_.step_at(i).scatter;
        if (!scatter.transfers.empty()) {
            exchanges_[0].start(scatter, z, info.window.origin, stream);
            if (rank() > 0 && !part.window.empty()) {
                part_.place(plan_.problem.batch, plan_.problem.channels, part.window);
                exchanges_[0].wait_into(part_.view(), part.window.origin, stream);
            }
        }
        predictions_.place(plan_.problem.batch, plan_.problem.prediction_channels, part.window);
        if (!part.window.empty()) {
            const const_latent_view own = info.window.empty()
                                              ? std::as_const(part_).view()
                                              : part_of(z, info.window, part, stream);
            step_info own_info = info;
            if (info.window.empty()) own_info.window = part.window;
            call_model(own, part, own_info, predictions_.view(), stream);
        }
        exchanges_[0].wait();
    }

    /// Exchanges the predictions and stitches them over what this rank is to get.
    void combine(index_t i, const box& held, latent_view prediction, stream_ref stream) {
        const latent_parallel_step& step = plan_.step_at(i);
        const latent_part& part = own_part(i);
        const box stepped = plan_.stepped(i, rank());
        const box target = is_replicated() ? part.core : stepped;
        gather_pieces(i, target, stream);
        if (!target.empty()) {
            kernels_.stitch(subview(prediction, relative_to(target, stepped.origin)),
                            plan_.cut_of(i).along, pieces_, stream);
        }
        if (!is_replicated()) return;
        const latent_view core = subview(prediction, relative_to(part.core, held.origin));
        if (rounds(plan_.options.wire_prediction)) {
            kernels_.round(core, plan_.options.wire_prediction, stream);
        }
        exchanges_[0].start(step.spread, prediction, held.origin, stream);
        exchanges_[0].wait_into(prediction, held.origin, stream);
    }

    /// Exchanges the predictions: the pieces of what this rank is to get, in the order of the ranks.
    void gather_pieces(index_t i, const box& target, stream_ref stream) {
        const latent_part& part = own_part(i);
        exchanges_[0].start(plan_.step_at(i).predictions, predictions_.view(), part.window.origin,
                            stream);
        const auto arrivals = exchanges_[0].wait();
        pieces_.clear();
        if (target.empty()) return;
        bool own_added = part.window.empty();
        const auto add_own = [&] {
            if (!own_added) add_piece(i, rank(), part.window, predictions_.view(), target);
            own_added = true;
        };
        for (const auto& arrival : arrivals) {
            if (arrival.from.from > rank()) add_own();
            add_piece(i, arrival.from.from, arrival.from.region, arrival.data, target);
        }
        add_own();
    }

    void add_piece(index_t i, int from, const box& region, const const_latent_view& data,
                   const box& target) {
        const latent_cut& cut = plan_.cut_of(i);
        const latent_part& part = cut.parts[static_cast<std::size_t>(from)];
        const index_t begin = region.begin(cut.along);
        pieces_.push_back(
            {data, begin - target.begin(cut.along),
             std::span(part.weights)
                 .subspan(static_cast<std::size_t>(begin - part.window.begin(cut.along)),
                          static_cast<std::size_t>(region.extent[index_of(cut.along)]))});
    }

    /// All parts in turn on this rank, with the numbers that the ranks would get.
    void simulate(index_t i, const const_latent_view& z, const step_info& info,
                  latent_view prediction, stream_ref stream) {
        const latent_cut& cut = plan_.cut_of(i);
        if (cut.parts.size() == 1) {
            call_model(part_of(z, info.window, cut.parts[0], stream), cut.parts[0], info,
                       prediction, stream);
            return;
        }
        pieces_.clear();
        latent_view next = predictions_.memory();
        for (std::size_t k = 0; k < cut.parts.size(); ++k) {
            const latent_part& part = cut.parts[k];
            if (part.window.empty()) continue;
            next.extents = {plan_.problem.batch, plan_.problem.prediction_channels,
                            part.window.extent[0], part.window.extent[1], part.window.extent[2]};
            next.strides = dense_strides(next.extents);
            call_model(part_of(z, info.window, part, stream), part, info, next, stream);
            add_piece(i, static_cast<int>(k), part.window, next, info.window);
            next.data += detail::aligned(next.bytes());
        }
        kernels_.stitch(prediction, cut.along, pieces_, stream);
        if (is_replicated() && rounds(plan_.options.wire_prediction)) {
            kernels_.round(prediction, plan_.options.wire_prediction, stream);
        }
    }

    /// Rounds what is about to travel, at its owner.
    void round_state(index_t next_step, latent_state& state, stream_ref stream) {
        if (!rounds(plan_.options.wire_state)) return;
        const box core = plan_.stepped(next_step - 1, rank());
        if (core.empty()) return;
        kernels_.round(state.z.view(core), plan_.options.wire_state, stream);
        for (std::size_t k = 0; k < state.history.size(); ++k) {
            if (plan_.problem.reads_history(next_step, static_cast<index_t>(k))) {
                kernels_.round(state.history[k].view(core), plan_.options.wire_state, stream);
            }
        }
    }

    /// Moves z and the live history; the buffers of predictions, free now, take what comes, and
    /// change places with what it was. The loop's z and the policy's prediction only do where they
    /// are of one memory, which neither may outlive.
    void move(index_t i, latent_state& state, stream_ref stream) {
        const latent_parallel_step& step = plan_.step_at(i);
        const placement now = placement_at(i);
        const placement next = placement_at(i + 1);
        const index_t batch = plan_.problem.batch;
        const index_t channels = plan_.problem.channels;
        exchanges_[0].start(step.move_state, state.z.view(), now.held.origin, stream);
        for (std::size_t k = 0; k < state.history.size(); ++k) {
            if (!plan_.problem.reads_history(i + 1, static_cast<index_t>(k))) continue;
            exchanges_[k + 1].start(step.move_history[k], state.history[k].view(),
                                    now.stepped.origin, stream);
        }
        const auto receive = [&](std::size_t channel, latent_block& from, latent_block& to,
                                 const box& where) {
            to.place(batch, channels, where);
            const box kept = intersect(now.stepped, where);
            if (!kept.empty()) {
                kernels_.copy(std::as_const(from).view(kept), to.view(kept), stream);
            }
            exchanges_[channel].wait_into(to.view(), where.origin, stream);
            if (from.source().resource == to.source().resource) {
                std::swap(from, to);
            } else {
                from.place(batch, channels, where);
                kernels_.copy(std::as_const(to).view(), from.view(), stream);
            }
        };
        receive(0, state.z, predictions_, next.held);
        for (std::size_t k = 0; k < state.history.size(); ++k) {
            if (plan_.problem.reads_history(i + 1, static_cast<index_t>(k))) {
                receive(k + 1, state.history[k], state.prediction, next.stepped);
            } else {
                state.history[k].place(batch, channels, next.stepped);
            }
        }
    }

    Model model_;
    Comm* comm_;
    latent_parallel_plan plan_;
    Kernels kernels_;
    latent_block part_;
    latent_block predictions_;
    std::vector<box_exchange<Comm, Kernels>> exchanges_;
    // Reused from call to call, so that the steady state allocates nothing.
    std::vector<kernel::stitch_part> pieces_;
    std::vector<const_latent_view> conditions_;
    std::vector<sample_info> samples_;
};

}  // namespace latpar::inline v0

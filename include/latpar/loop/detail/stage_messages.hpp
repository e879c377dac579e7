// SPDX-License-Identifier: Apache-2.0
// The messages of a stage of DualParal.
#pragma once

#include <latpar/comm/detail/shared_buffer.hpp>
#include <latpar/core/latent_block.hpp>
#include <latpar/loop/detail/pipelines.hpp>
#include <latpar/loop/dual_paral_plan.hpp>

#include <array>
#include <chrono>
#include <concepts>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace latpar::inline v0::detail {

/// Hidden tensors from a stage to the next, and predictions from the last one back to the first.
///
/// Tasks are known by their numbers, counted from the first of all. Two of them have hidden tensors
/// on a stage at once: one is worked on while the next comes in, or the last goes on. What arrives
/// lies in one piece of memory, which the stages write to where they reach it.
template <communicator Comm>
class stage_messages {
public:
    explicit stage_messages(pipelines<Comm> ranks) : ranks_(std::move(ranks)) {}

    [[nodiscard]] pipelines<Comm>& ranks() noexcept { return ranks_; }
    [[nodiscard]] const pipelines<Comm>& ranks() const noexcept { return ranks_; }
    [[nodiscard]] int rank() const noexcept { return ranks_.stages().rank(); }

    /// Takes the memory. Ranks: all of the pipeline.
    void take(const loop::dual_paral_plan& plan, memory_source source) {
        const std::vector<Comm*> pipes = ranks_.pipes();
        inbox_.reserve([&](int rank) { return plan.inbox_bytes(rank); }, source,
                       std::span<Comm* const>(pipes));
        std::byte* next = inbox_.data();
        for (slot& s : slots_) {
            for (const hidden_signature& h : plan.model.hidden) {
                hidden_view view{next, h.extents, dense_strides(h.extents), h.type, source.space};
                next += aligned(view.bytes());
                s.hidden.push_back(view);
            }
        }
        if (rank() == 0) arriving_.resize(static_cast<std::size_t>(plan.depth()));
        if (rank() + 1 < plan.ranks || plan.ranks == 1) return;
        for (departure& d : leaving_) {
            d.prediction = latent_block(plan.arrival_bytes(), plan.options.wire_prediction, source);
        }
    }

    /// Runs f, and counts the seconds that it takes as waiting.
    template <std::invocable F>
    void waiting(F&& f) {
        const auto start = std::chrono::steady_clock::now();
        f();
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        waited_ += taken.count();
    }
    [[nodiscard]] double seconds_waited() const noexcept { return waited_; }

    /// The hidden tensors of a task.
    [[nodiscard]] std::span<const hidden_view> hidden(index_t task) { return at(task).hidden; }
    /// Waits until what was sent from there before has gone.
    void clear(index_t task) { finish(at(task).going); }

    /// Sends a task's hidden tensors to the next stage; those of the first of an iteration with
    /// word of whether another iteration follows, for what the stages do must not differ.
    void send_on(const loop::dual_paral_task& task, index_t number, bool follows,
                 stream_ref stream) {
        slot& from = at(number);
        const int next = rank() + 1;
        const pipe to = ranks_.link(rank());
        from.follows = follows ? 1 : 0;
        sends_.clear();
        if (task.is_tail) sends_.push_back({&from.follows, 1, dtype::u8, next});
        for (const hidden_view& h : from.hidden) {
            sends_.push_back({h.data, h.elements(), h.type, next, h.space,
                              inbox_.at(next, h.data, place_of(to))});
        }
        from.going.emplace(ranks_.over(to).start_exchange(sends_, {}, stream));
    }
    /// Lets them come in on that stage.
    void expect(const loop::dual_paral_task& task, index_t number, stream_ref stream) {
        slot& to = at(number);
        const int before = rank() - 1;
        const pipe from = ranks_.link(before);
        finish(to.going);
        recvs_.clear();
        if (task.is_tail) recvs_.push_back({&to.follows, 1, dtype::u8, before});
        for (const hidden_view& h : to.hidden) {
            recvs_.push_back({h.data, h.elements(), h.type, before, h.space, has_targets(from)});
        }
        to.coming.emplace(ranks_.over(from).start_exchange({}, recvs_, stream));
    }
    /// Waits until they are in.
    void receive(index_t task) { finish(at(task).coming); }
    /// What came with the first task of an iteration.
    [[nodiscard]] bool follows(index_t task) noexcept { return at(task).follows != 0; }

    // ---- predictions: the last stage sends what the first one expects ----

    /// Where a prediction is written before it leaves, once what left from there before has gone.
    [[nodiscard]] latent_view outgoing(const loop::dual_paral_plan& plan,
                                       const loop::dual_paral_task& task, index_t number) {
        departure& out = leaving(number);
        finish(out.going);
        out.prediction.place(1, plan.problem.channels, plan.frames_of(task.block));
        return out.prediction.view();
    }
    void send_back(const loop::dual_paral_plan& plan, index_t number, stream_ref stream) {
        departure& out = leaving(number);
        const latent_view v = out.prediction.view();
        std::byte* const target = has_targets(pipe::back) ? inbox_.at(0, place_of(pipe::back)) +
                                                                plan.arrival_offset(number)
                                                          : nullptr;
        sends_.assign(1, {v.data, v.elements(), v.type, 0, v.space, target});
        out.going.emplace(ranks_.over(pipe::back).start_exchange(sends_, {}, stream));
    }
    /// Where a prediction arrives.
    [[nodiscard]] latent_view incoming(const loop::dual_paral_plan& plan,
                                       const loop::dual_paral_task& task, index_t number) const {
        const extents3 frames = plan.frames_of(task.block).extent;
        const std::array<index_t, 5> extents{1, plan.problem.channels, frames[0], frames[1],
                                             frames[2]};
        return {inbox_.data() + plan.arrival_offset(number), extents, dense_strides(extents),
                plan.options.wire_prediction, inbox_.space()};
    }
    void expect_back(const loop::dual_paral_plan& plan, const loop::dual_paral_task& task,
                     index_t number, stream_ref stream) {
        const latent_view v = incoming(plan, task, number);
        recvs_.assign(
            1, {v.data, v.elements(), v.type, plan.ranks - 1, v.space, has_targets(pipe::back)});
        arriving(number).emplace(ranks_.over(pipe::back).start_exchange({}, recvs_, stream));
    }
    void receive_back(index_t task) { finish(arriving(task)); }

    /// Waits until all that was sent has gone.
    void flush() {
        for (slot& s : slots_) finish(s.going);
        for (departure& d : leaving_) finish(d.going);
    }

private:
    using exchange_type =
        decltype(std::declval<Comm&>().start_exchange({}, {}, std::declval<stream_ref>()));

    /// Hidden tensors of one task, which lie alike on all stages.
    struct slot {
        std::vector<hidden_view> hidden;
        std::uint8_t follows = 0;
        std::optional<exchange_type> coming;
        std::optional<exchange_type> going;
    };
    struct departure {
        latent_block prediction;
        std::optional<exchange_type> going;
    };

    [[nodiscard]] slot& at(index_t task) noexcept {
        return slots_[static_cast<std::size_t>(task) % slots_.size()];
    }
    [[nodiscard]] departure& leaving(index_t task) noexcept {
        return leaving_[static_cast<std::size_t>(task) % leaving_.size()];
    }
    [[nodiscard]] std::optional<exchange_type>& arriving(index_t task) noexcept {
        return arriving_[static_cast<std::size_t>(task) % arriving_.size()];
    }
    /// The place of a pipe among those that the memory is shared over.
    [[nodiscard]] static std::size_t place_of(pipe which) noexcept {
        return static_cast<std::size_t>(which);
    }
    /// Whether messages through it have targets.
    [[nodiscard]] bool has_targets(pipe which) const noexcept {
        return inbox_.is_shared(place_of(which));
    }
    void finish(std::optional<exchange_type>& exchange) {
        if (!exchange) return;
        waiting([&] { wait_on_host(*exchange); });
        exchange.reset();
    }

    pipelines<Comm> ranks_;
    double waited_ = 0;
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
    shared_buffer inbox_;  ///< hidden tensors of two tasks, and on rank 0 predictions behind them
    // Last, so that what is in flight ends before its buffers do.
    std::array<slot, 2> slots_;
    std::array<departure, 2> leaving_;
    std::vector<std::optional<exchange_type>> arriving_;
};

}  // namespace latpar::inline v0::detail

// SPDX-License-Identifier: Apache-2.0
// ParaStep: consecutive denoising steps at once, by reusing predictions and then correcting.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/detail/memory_complaint.hpp>
#include <latpar/denoise/detail/spread.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/loop/detail/latent_stepper.hpp>
#include <latpar/loop/detail/reused_predictions.hpp>
#include <latpar/loop/para_step_plan.hpp>

#include <concepts>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace latpar::inline v0::loop {

/// Samples with p ranks that each have the whole model and call it for p consecutive steps at once.
///
/// After a warm-up that every rank does by itself come rounds of p steps. Rank r steps on from the
/// round's first latent to its r-th with a prediction that it has already, calls the model there,
/// and sends the prediction to rank 0, which does the round's steps with the true predictions and
/// sends the latent back. Talks little, and once a round; costs the whole model on every rank. With
/// one rank and `degree` above one it makes all calls in turn: the same numbers without ranks.
///
/// `run()` does all of it; an engine that owns its loop drives it as it does `serial`: while
/// !done(), next_request(), the model, advance(). Each rank is asked for its own calls only. An
/// engine whose model fails, or that gives up, calls abort(), or the other ranks wait.
///
/// Ranks: all ranks of the communicator, and of the model if it is spread over some, construct it
/// and make every call but those of the stepper in the same order.
/// Memory: `plan.workspace_bytes(rank)` from `source`, taken by the constructor.
/// Errors: usage_error on every rank, before payload moves, if plans or schedules differ, the
/// schedule is not what was planned for, or the model lies otherwise on its ranks than planned. An
/// exception on one rank makes the others throw with its message.
/// Source: ParaStep (arXiv 2505.14741).
template <denoiser Model, communicator Comm, scheduler Schedule, kernel_set Kernels = kernel::host>
class para_step {
public:
    using request = loop::request;

    /// The model stays the caller's.
    para_step(Model& model, Comm& comm, Schedule schedule, para_step_plan plan,
              Kernels kernels = {}, memory_source source = {})
        : model_(&model),
          comm_(&comm),
          plan_(std::move(plan)),
          stepper_(std::move(schedule), plan_.problem.latent_extents(), std::move(kernels),
                   plan_.problem.type, source) {
        // Refused on all ranks alike, which may try again: nothing is aborted. But for a model with
        // ranks of its own, which must run the same before it is asked for more.
        latpar::detail::agree_around<Model>(*this, [&] {
            agree_on(*comm_, "the ParaStep plan", plan_.fingerprint());
            agree_on(*comm_, "the schedule", stepper_.fingerprint());
            ranks().agree(stepper_.problem(),
                          plan_.run_fingerprint() + ", " + stepper_.fingerprint());
            agree_no_error(*comm_, complaint(source));
        });
        guarded(*this, [&] { take_memory(source); });
    }
    para_step(const para_step&) = delete;
    para_step& operator=(const para_step&) = delete;
    /// In a round the other ranks would wait for this one in vain: it aborts them.
    ~para_step() {
        if (member_ && !plan_.simulated()) abort("a para_step was destroyed in a round");
    }

    [[nodiscard]] const para_step_plan& plan() const noexcept { return plan_; }

    /// Begins with the noise of key (0, 0); the same source feeds schedulers that draw noise.
    template <noise_source Noise>
    void start(const Noise& noise, stream_ref stream = {}) {
        guarded_call([&] {
            begin();
            agree_on_noise(noise, stream);
            stepper_.start(first().state, noise, stream);
            started_ = true;
        });
    }
    /// Begins with a whole latent, the same on every rank, of which this rank takes what it holds.
    void start(const_latent_view initial, stream_ref stream = {}) {
        guarded_call([&] {
            begin();
            stepper_.start(first().state, initial, stream);
            started_ = true;
        });
    }

    [[nodiscard]] index_t steps() const noexcept { return plan_.problem.steps; }
    /// Steps that are done on every rank: those of the warm-up and of whole rounds.
    [[nodiscard]] index_t step() const noexcept { return step_; }
    /// Whether there is nothing more to do on this rank. A rank without a call in a last round that
    /// is not full is done before the others are; collect() waits for them.
    [[nodiscard]] bool done() const noexcept {
        return step_ == steps() ||
               (in_round() && !member_ && members_.front().rank >= round().count);
    }

    /// The next call of this rank; z has been stepped on to where it is made. `noise` serves
    /// schedulers that draw some: the same source on every rank, here and in advance().
    template <noise_source Noise>
    [[nodiscard]] request next_request(const Noise& noise, stream_ref stream = {}) {
        latpar::detail::require_started(started_, done());
        if (in_round() && !member_) guarded_call([&] { enter_round(noise, stream); });
        requested_ = true;
        if (!member_) return stepper_.request_for(step_, first().state);
        member& m = members_[*member_];
        return stepper_.request_for(round().first + m.rank, m.state);
    }
    [[nodiscard]] request next_request(stream_ref stream = {}) {
        return next_request(latpar::detail::no_noise{}, stream);
    }

    /// Takes a prediction that was made elsewhere, in place of one written to the request's view.
    void supply(const_latent_view prediction, stream_ref stream = {}) {
        latpar::detail::require_requested(requested_);
        stepper_.kernels().copy(prediction, members_[member_.value_or(0)].state.prediction.view(),
                                stream);
    }

    /// Goes on with the prediction that was asked for; with the last of a round, to its end.
    template <noise_source Noise>
    void advance(const Noise& noise, stream_ref stream = {}) {
        latpar::detail::require_requested(requested_);
        requested_ = false;
        guarded_call([&] {
            if (!member_) {
                warm_up(noise, stream);
                return;
            }
            hand_over(stream);
            if (next_member(noise, stream)) return;
            finish_round(noise, stream);
        });
    }
    void advance(stream_ref stream = {}) { advance(latpar::detail::no_noise{}, stream); }

    /// Runs all steps that are left. `on_step(i)` is called when steps up to i are done, after each
    /// of the warm-up and at the end of each round, on the ranks that pass it; when it returns false
    /// on any, all stop there and the result is false. After the last step it is too late to stop,
    /// and the finished latent is had from collect() only.
    template <noise_source Noise, std::predicate<index_t> OnStep>
    bool run(const Noise& noise, OnStep&& on_step, stream_ref stream = {}) {
        return guarded_call([&] {
            latpar::detail::require_started(started_, false);
            if (plan_.problem.draws_noise) agree_on_noise(noise, stream);
            const bool is_watched =
                any_rank(*comm_, ranks().any_rank(latpar::detail::can_stop<OnStep>));
            while (step_ < steps()) {
                const index_t before = step_;
                while (step_ == before && !done()) {
                    const request next = next_request(noise, stream);
                    (*model_)(next.z, next.info, next.prediction, stream);
                    advance(noise, stream);
                }
                if (step_ == before) step_ = steps();  // no call in the last round
                const bool stop = !on_step(step_ - 1);
                if (is_watched && step_ < steps() && any_rank(*comm_, ranks().any_rank(stop))) {
                    return false;
                }
            }
            return true;
        });
    }
    template <noise_source Noise>
    void run(const Noise& noise, stream_ref stream = {}) {
        run(noise, latpar::detail::carry_on{}, stream);
    }

    /// The latent as it stands, whole, on the ranks that get the result; others may pass {}.
    void collect(latent_view out, stream_ref stream = {}) {
        guarded_call([&] {
            latpar::detail::require_started(started_, false);
            latpar::detail::require(!member_, "a round is under way; advance to its end first");
            // A rank that had no call in the last round may not know whether the others did it.
            const bool finished =
                plan_.result.empty() ? done() : any_rank(*comm_, step_ == steps());
            if (finished && !delivered_) {
                latent_view z = first().state.z.view();
                exchange_type exchange =
                    transfer(plan_.result, stream, [&](const para_step_message&) { return z; });
                wait_on_host(exchange);
                delivered_ = true;
            }
            if (comm_->rank() > 0 && !plan_.options.result_everywhere) return;
            ranks().collect(finished ? steps() : step_, first().state, out, stepper_.kernels(),
                            stream);
        });
    }

    /// Waits for what is still on its way to other ranks: before a graph of a round is captured, and
    /// at the end of the captured round; there the graph waits, and not the host.
    void join() {
        guarded_call([&] { finish(state_exchange_); });
    }

    /// Ends the waiting of all ranks, those of the model included, with the reason.
    void abort(std::string_view reason) {
        comm_->abort(reason);
        ranks().abort(reason);
    }

    /// What this rank holds between rounds: with history::shared the same on every rank.
    [[nodiscard]] const latent_state& state() const noexcept { return members_.front().state; }

private:
    /// A rank of the policy that lives here: one, or in a simulation all of them.
    struct member {
        int rank = 0;
        latent_state state;
    };
    using exchange_type =
        decltype(std::declval<Comm&>().start_exchange({}, {}, std::declval<stream_ref>()));

    [[nodiscard]] latpar::detail::spread<Model> ranks() const {
        return {*model_, plan_.problem.extents};
    }
    [[nodiscard]] member& first() noexcept { return members_.front(); }
    [[nodiscard]] bool in_round() const noexcept { return step_ >= plan_.options.warm_up; }
    [[nodiscard]] const para_step_round& round() const { return plan_.rounds[round_]; }
    [[nodiscard]] bool is_last_round() const noexcept { return round_ + 1 == plan_.rounds.size(); }
    [[nodiscard]] const box& held() const noexcept { return *plan_.options.held; }

    /// Runs f; if it throws, the other ranks throw too instead of waiting for this one.
    template <class F>
    decltype(auto) guarded_call(F&& f) {
        return guarded(*this, std::forward<F>(f));
    }

    [[nodiscard]] std::optional<std::string> complaint(const memory_source& source) const {
        using latpar::detail::concat;
        if (plan_.ranks != comm_->size()) {
            return concat("ParaStep was planned for ", plan_.ranks, " ranks, the communicator has ",
                          comm_->size(), "; plan for its size");
        }
        if (auto text = stepper_.complaint_about(plan_.problem, "ParaStep")) return text;
        if (auto text = latpar::detail::memory_complaint(*comm_, stepper_.kernels(), source)) {
            return text;
        }
        return stepper_.complaint_about(held(), "ParaStep",
                                        [&](index_t i) { return ranks().placement_at(i); });
    }

    void take_memory(memory_source source) {
        const index_t positions = held().volume();
        const int count = plan_.simulated() ? plan_.degree() : 1;
        for (int k = 0; k < count; ++k) {
            members_.push_back(
                {plan_.simulated() ? k : comm_->rank(), stepper_.take_state(positions, positions)});
        }
        stepper_.take_noise(positions);
        if (plan_.rounds.empty()) return;
        const auto blocks = [&](std::vector<latent_block>& out, index_t number, dtype type) {
            const index_t bytes =
                positions * plan_.problem.batch * plan_.problem.channels * size_of(type);
            for (index_t k = 0; k < number; ++k) {
                stepper_.place(out.emplace_back(bytes, type, source), held());
            }
        };
        const dtype wire = plan_.options.wire_prediction;
        const int rank = comm_->rank();
        if (plan_.simulated() || rank > 0) {
            std::vector<latent_block> kept;
            blocks(kept, plan_.kept_predictions(), wire);
            reused_ = latpar::detail::reused_predictions(std::move(kept));
        }
        if (plan_.simulated()) return;
        if (rank == 0) blocks(arrivals_, plan_.degree() - 1, wire);
        if (plan_.rounds_predictions() && plan_.sends_predictions(rank)) blocks(outgoing_, 1, wire);
        if (plan_.rounds_state()) {
            blocks(travelling_, 1 + plan_.problem.history_size(), plan_.options.wire_state);
        }
    }

    void begin() {
        latpar::detail::require(!member_ || plan_.simulated(),
                                "a round is under way; advance to its end first, or abort");
        finish(state_exchange_);
        step_ = 0;
        round_ = 0;
        member_.reset();
        started_ = false;
        requested_ = false;
        delivered_ = false;
        reused_.forget();
        for (member& m : members_) stepper_.place(m.state, {held(), held()});
    }

    /// Ranks that draw from different sources would sample a mixture.
    template <noise_source Noise>
    void agree_on_noise(const Noise& noise, stream_ref stream) {
        agree_on(*comm_, "the loop", stepper_.fingerprint(noise, stream));
        stepper_.agree_on_noise(ranks(), noise, stream);
    }

    template <noise_source Noise>
    void warm_up(const Noise& noise, stream_ref stream) {
        latent_state& state = first().state;
        const const_latent_view prediction = std::as_const(state.prediction).view();
        stepper_.step(step_, state, held(), prediction, noise, stream);
        reused_.remember(step_, prediction, stepper_.kernels(), stream);
        ++step_;
        if (!in_round()) return;
        for (member& m : members_) {
            if (&m == &first()) continue;
            stepper_.copy(state, m.state, stream);
            stepper_.copy(state.prediction, m.state.prediction, stream);
        }
    }

    /// Posts what comes in during a round, and goes to the first call of it.
    template <noise_source Noise>
    void enter_round(const Noise& noise, stream_ref stream) {
        if (!plan_.simulated() && comm_->rank() == 0) {
            prediction_exchange_.emplace(
                transfer(round().predictions, stream, [&](const para_step_message& m) {
                    return arrivals_[static_cast<std::size_t>(m.from - 1)].view();
                }));
        }
        member_ = 0;
        draft(noise, stream);
    }

    /// Steps the present member on to its call.
    template <noise_source Noise>
    void draft(const Noise& noise, stream_ref stream) {
        member& m = members_[*member_];
        for (index_t i = round().first; i < round().first + m.rank; ++i) {
            const const_latent_view prediction = reused_.at(
                i, stepper_.schedule(), m.state.prediction.view(), stepper_.kernels(), stream);
            stepper_.step(i, m.state, held(), prediction, noise, stream);
        }
    }

    /// To the next call of a member in this round, if there is one.
    template <noise_source Noise>
    bool next_member(const Noise& noise, stream_ref stream) {
        const std::size_t next = *member_ + 1;
        if (next == members_.size() || members_[next].rank >= round().count) return false;
        member_ = next;
        draft(noise, stream);
        return true;
    }

    /// The prediction of the present member is made: rounds it if it travels, and sends it.
    void hand_over(stream_ref stream) {
        member& m = members_[*member_];
        if (!plan_.sends_predictions(m.rank) || held().empty()) return;
        latent_view prediction = m.state.prediction.view();
        if (plan_.rounds_predictions()) {
            stepper_.kernels().round(prediction, plan_.options.wire_prediction, stream);
        }
        if (plan_.simulated()) return;
        if (plan_.rounds_predictions()) {
            stepper_.kernels().copy(prediction, outgoing_.front().view(), stream);
            prediction = outgoing_.front().view();
        }
        if (m.rank > 0) {
            prediction_exchange_.emplace(transfer(
                round().predictions, stream, [&](const para_step_message&) { return prediction; }));
        }
    }

    template <noise_source Noise>
    void finish_round(const Noise& noise, stream_ref stream) {
        const index_t last = round().first + round().count - 1;
        keep_predictions(stream);
        if (plan_.simulated() || comm_->rank() == 0) {
            finish(state_exchange_);  // what was sent is about to change
            for (index_t i = round().first; i <= last; ++i) {
                stepper_.step(i, first().state, held(), prediction_of(i - round().first), noise,
                              stream);
            }
        }
        if (!is_last_round()) {
            if (plan_.options.history == history::official) {
                for (member& m : members_) {
                    if (m.rank == 0) continue;
                    for (index_t i = round().first + m.rank; i <= last; ++i) {
                        stepper_.step(i, m.state, held(), std::as_const(m.state.prediction).view(),
                                      noise, stream);
                    }
                }
            }
            share_state(last + 1, stream);
        }
        finish(prediction_exchange_);
        finish(reused_exchange_);
        member_.reset();
        step_ = last + 1;
        ++round_;
    }

    /// What the next round reuses goes to where it is kept.
    void keep_predictions(stream_ref stream) {
        const int kept = plan_.kept_predictions();
        if (is_last_round() || kept == 0) return;
        const index_t oldest = round().first + plan_.degree() - kept;
        for (const member& m : members_) {
            const int slot = m.rank - (plan_.degree() - kept);
            if (slot >= 0 && reused_.is_kept()) {
                reused_.put(slot, m.state.prediction.view(), stepper_.kernels(), stream);
            }
        }
        if (!plan_.simulated()) {
            reused_exchange_.emplace(
                transfer(round().reused, stream, [&](const para_step_message& m) {
                    if (m.from == comm_->rank()) return own_as_it_travels();
                    return reused_.view(m.from - (plan_.degree() - kept));
                }));
        }
        reused_.set_steps(oldest);
    }

    [[nodiscard]] latent_view own_as_it_travels() {
        return outgoing_.empty() ? first().state.prediction.view() : outgoing_.front().view();
    }

    /// The prediction of rank r in this round, on rank 0.
    [[nodiscard]] const_latent_view prediction_of(index_t r) {
        if (plan_.simulated()) return members_[static_cast<std::size_t>(r)].state.prediction.view();
        if (r == 0) return first().state.prediction.view();
        finish(prediction_exchange_);
        return arrivals_[static_cast<std::size_t>(r - 1)].view();
    }

    /// Rank 0's latent, and the history that the next step reads, to every rank.
    void share_state(index_t next_step, stream_ref stream) {
        if (held().empty()) return;
        const auto block_of = [](latent_state& state, int history) -> latent_block& {
            return history < 0 ? state.z : state.history[static_cast<std::size_t>(history)];
        };
        std::vector<int>& tensors = tensors_;
        tensors.assign(1, -1);
        for (int h = 0; h < static_cast<int>(plan_.problem.history_size()); ++h) {
            if (plan_.options.history == history::shared &&
                plan_.problem.reads_history(next_step, h)) {
                tensors.push_back(h);
            }
        }
        const bool narrow = plan_.rounds_state();
        const bool sends = plan_.simulated() || comm_->rank() == 0;
        if (sends && narrow) {
            for (const int h : tensors) {
                stepper_.kernels().round(block_of(first().state, h).view(),
                                         plan_.options.wire_state, stream);
            }
        }
        if (plan_.simulated()) {
            for (std::size_t k = 1; k < members_.size(); ++k) {
                for (const int h : tensors) {
                    stepper_.copy(block_of(first().state, h), block_of(members_[k].state, h),
                                  stream);
                }
            }
            return;
        }
        const auto travelling = [&](int h) -> latent_block& {
            return narrow ? travelling_[static_cast<std::size_t>(h + 1)]
                          : block_of(first().state, h);
        };
        if (sends && narrow) {
            for (const int h : tensors) {
                stepper_.copy(block_of(first().state, h), travelling(h), stream);
            }
        }
        state_exchange_.emplace(transfer(round().state, stream, [&](const para_step_message& m) {
            return travelling(m.tensor).view();
        }));
        if (sends) return;  // the sends go on during the next calls of the model
        finish(state_exchange_);
        if (!narrow) return;
        for (const int h : tensors) {
            stepper_.copy(travelling(h), block_of(first().state, h), stream);
        }
    }

    static void finish(std::optional<exchange_type>& exchange) {
        if (!exchange) return;
        wait_on_host(*exchange);
        exchange.reset();
    }

    /// Starts this rank's part of a list of messages; `view_of(message)` is what it sends or
    /// receives.
    template <class ViewOf>
    exchange_type transfer(const std::vector<para_step_message>& messages, stream_ref stream,
                           ViewOf&& view_of) {
        sends_.clear();
        recvs_.clear();
        for (const para_step_message& m : messages) {
            if (m.from == comm_->rank()) {
                const latent_view v = view_of(m);
                sends_.push_back({v.data, v.elements(), v.type, m.to, v.space});
            }
            if (m.to == comm_->rank()) {
                const latent_view v = view_of(m);
                recvs_.push_back({v.data, v.elements(), v.type, m.from, v.space});
            }
        }
        return comm_->start_exchange(sends_, recvs_, stream);
    }

    Model* model_;
    Comm* comm_;
    para_step_plan plan_;
    latpar::detail::latent_stepper<Schedule, Kernels> stepper_;
    std::vector<member> members_;
    latpar::detail::reused_predictions reused_;
    std::vector<latent_block> arrivals_;    ///< rank 0: predictions of ranks 1, 2, ...
    std::vector<latent_block> outgoing_;    ///< own prediction, as it travels, if narrower
    std::vector<latent_block> travelling_;  ///< latent and history as they travel, if narrower
    index_t step_ = 0;
    std::size_t round_ = 0;
    std::optional<std::size_t> member_;  ///< whose call is next; none between rounds
    bool started_ = false;
    bool requested_ = false;
    bool delivered_ = false;
    // Reused from call to call, so that the steady state allocates nothing.
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
    std::vector<int> tensors_;
    // Last, so that what is in flight ends before its buffers do.
    std::optional<exchange_type> prediction_exchange_;
    std::optional<exchange_type> reused_exchange_;
    std::optional<exchange_type> state_exchange_;
};

}  // namespace latpar::inline v0::loop

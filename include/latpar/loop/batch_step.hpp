// SPDX-License-Identifier: Apache-2.0
// BatchStep: consecutive denoising steps in one batch of the model, on one device.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/denoise/detail/spread.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/loop/batch_step_plan.hpp>
#include <latpar/loop/detail/latent_stepper.hpp>
#include <latpar/loop/detail/reused_predictions.hpp>

#include <algorithm>
#include <concepts>
#include <string_view>
#include <utility>
#include <vector>

namespace latpar::inline v0::loop {

/// Samples by making the model calls of p consecutive steps in one batch.
///
/// The latents of the next p - 1 steps are stepped on to with predictions that are there already,
/// all p go through the model as a batch [p B, C, T, H, W], each sample with its own timestep, and
/// the steps are done again with what it predicts. A model whose `max_batch` is smaller is called
/// for as many at a time as it takes; one by one, the result is to the bit that of para_step with
/// the same degree, reuse and history::shared, and `predict_last`.
///
/// Ranks: those of the model, if it is spread over some. Stepper, errors: as `serial`.
/// Memory: `plan.workspace_bytes()` from `source`, taken by the constructor.
/// Source: ParaStep (arXiv 2505.14741), section on BatchStep.
template <denoiser Model, scheduler Schedule, kernel_set Kernels = kernel::host>
class batch_step {
public:
    using request = loop::request;

    /// The model stays the caller's.
    batch_step(Model& model, Schedule schedule, batch_step_plan plan, Kernels kernels = {},
               memory_source source = {})
        : model_(&model),
          plan_(std::move(plan)),
          stepper_(std::move(schedule), plan_.problem.latent_extents(), std::move(kernels),
                   plan_.problem.type, source),
          most_(std::max<index_t>(1, max_batch_of(model) / plan_.problem.batch)) {
        // Refused on all ranks alike, which may try again: nothing is aborted.
        ranks().agree(stepper_.problem(), plan_.run_fingerprint() + ", " + stepper_.fingerprint());
        guarded_call([&] {
            check();
            take_memory(source);
        });
    }

    [[nodiscard]] const batch_step_plan& plan() const noexcept { return plan_; }

    /// Begins with the noise of key (0, 0); the same source feeds schedulers that draw noise.
    template <noise_source Noise>
    void start(const Noise& noise, stream_ref stream = {}) {
        guarded_call([&] {
            begin();
            stepper_.agree_on_noise(ranks(), noise, stream);
            stepper_.start(state_, noise, stream);
            started_ = true;
        });
    }
    /// Begins with a whole latent, the same on every rank, of which this rank takes what it holds.
    void start(const_latent_view initial, stream_ref stream = {}) {
        guarded_call([&] {
            begin();
            stepper_.start(state_, initial, stream);
            started_ = true;
        });
    }

    [[nodiscard]] index_t steps() const noexcept { return plan_.problem.steps; }
    /// The step that is next: all before it are done with true predictions.
    [[nodiscard]] index_t step() const noexcept { return step_; }
    [[nodiscard]] bool done() const noexcept { return step_ == steps(); }

    /// The next call, of as many steps as the model takes at once.
    template <noise_source Noise>
    [[nodiscard]] request next_request(const Noise& noise, stream_ref stream = {}) {
        latpar::detail::require_started(started_, done());
        if (in_round() && !drafted_) {
            guarded_call([&] { draft(noise, stream); });
            drafted_ = true;
        }
        requested_ = true;
        if (!in_round()) return stepper_.request_for(step_, state_);
        const index_t count = std::min(most_, round().count - called_);
        samples_.clear();
        for (index_t r = called_; r < called_ + count; ++r) {
            samples_.insert(samples_.end(), static_cast<std::size_t>(plan_.problem.batch),
                            stepper_.sample_at(round().first + r));
        }
        return {steps_of(inputs_, called_, count),
                {samples_, *plan_.options.held, stepper_.spatial(), {}},
                steps_of(predictions_, called_, count)};
    }
    [[nodiscard]] request next_request(stream_ref stream = {}) {
        return next_request(latpar::detail::no_noise{}, stream);
    }

    /// Takes a prediction that was made elsewhere, in place of one written to the request's view.
    void supply(const_latent_view prediction, stream_ref stream = {}) {
        latpar::detail::require_requested(requested_);
        latent_view target = state_.prediction.view();
        if (in_round()) {
            target = steps_of(predictions_, called_, std::min(most_, round().count - called_));
        }
        stepper_.kernels().copy(prediction, target, stream);
    }

    /// Goes on with the predictions that were asked for; with the last of a batch, does its steps.
    template <noise_source Noise>
    void advance(const Noise& noise, stream_ref stream = {}) {
        latpar::detail::require_requested(requested_);
        requested_ = false;
        guarded_call([&] {
            if (in_round()) {
                advance_in_round(noise, stream);
                return;
            }
            const const_latent_view prediction = std::as_const(state_.prediction).view();
            stepper_.step(step_, state_, held(), prediction, noise, stream);
            reused_.remember(step_, prediction, stepper_.kernels(), stream);
            ++step_;
        });
    }
    void advance(stream_ref stream = {}) { advance(latpar::detail::no_noise{}, stream); }

    /// Runs all steps that are left. `on_step(i)` is called when steps up to i are done, after each
    /// of the warm-up and of each batch, on the ranks that pass it; when it returns false on any, all
    /// stop there and the result is false. After the last step it is too late to stop.
    template <noise_source Noise, std::predicate<index_t> OnStep>
    bool run(const Noise& noise, OnStep&& on_step, stream_ref stream = {}) {
        return guarded_call([&] {
            latpar::detail::require_started(started_, false);
            if (plan_.problem.draws_noise) stepper_.agree_on_noise(ranks(), noise, stream);
            const bool is_watched = ranks().any_rank(latpar::detail::can_stop<OnStep>);
            while (!done()) {
                const index_t before = step_;
                while (step_ == before) {
                    const request next = next_request(noise, stream);
                    (*model_)(next.z, next.info, next.prediction, stream);
                    advance(noise, stream);
                }
                const bool stop = !on_step(step_ - 1);
                if (is_watched && !done() && ranks().any_rank(stop)) return false;
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
            ranks().collect(step_, state_, out, stepper_.kernels(), stream);
        });
    }

    /// Ends the waiting of the model's other ranks, with the reason.
    void abort(std::string_view reason) { ranks().abort(reason); }

    /// What this rank holds between batches.
    [[nodiscard]] latent_state& state() noexcept { return state_; }

private:
    [[nodiscard]] latpar::detail::spread<Model> ranks() const {
        return {*model_, plan_.problem.extents};
    }
    template <class F>
    decltype(auto) guarded_call(F&& f) {
        latpar::detail::spread<Model> all = ranks();
        return guarded(all, std::forward<F>(f));
    }
    [[nodiscard]] bool in_round() const noexcept {
        return batches() && step_ >= plan_.options.warm_up;
    }
    [[nodiscard]] const batch_step_round& round() const { return plan_.rounds[round_]; }
    [[nodiscard]] const box& held() const noexcept { return *plan_.options.held; }
    [[nodiscard]] bool batches() const noexcept {
        return plan_.options.degree > 1 && !plan_.rounds.empty();
    }

    /// Errors: usage_error if schedule or model are not as planned.
    void check() const {
        auto complaint = stepper_.complaint_about(plan_.problem, "BatchStep");
        if (!complaint) {
            complaint = stepper_.complaint_about(
                held(), "BatchStep", [&](index_t i) { return ranks().placement_at(i); });
        }
        if (complaint) throw usage_error(*complaint);
    }

    void take_memory(memory_source source) {
        state_ = stepper_.take_state(held().volume(), held().volume());
        stepper_.take_noise(held().volume());
        if (!batches()) return;
        const index_t batch = plan_.options.degree * plan_.problem.batch;
        const auto take = [&](index_t samples) {
            const index_t bytes =
                samples * plan_.problem.channels * held().volume() * size_of(plan_.problem.type);
            latent_block out(bytes, plan_.problem.type, source);
            out.place(samples, plan_.problem.channels, held());
            return out;
        };
        inputs_ = take(batch);
        predictions_ = take(batch);
        for (index_t h = 0; h < plan_.problem.history_size(); ++h) {
            draft_history_.push_back(take(plan_.problem.batch));
        }
        std::vector<latent_block> kept;
        for (int k = 0; k < plan_.kept_predictions(); ++k)
            kept.push_back(take(plan_.problem.batch));
        reused_ = latpar::detail::reused_predictions(std::move(kept));
    }

    /// The latents of steps r to r + count - 1 of a batch.
    [[nodiscard]] latent_view steps_of(latent_block& block, index_t r, index_t count) const {
        latent_view out = block.view();
        out.data += r * plan_.problem.batch * out.strides[0] * size_of(out.type);
        out.extents[0] = count * plan_.problem.batch;
        return out;
    }

    /// The latents of a batch: the true one, and those that follow by the predictions at hand.
    template <noise_source Noise>
    void draft(const Noise& noise, stream_ref stream) {
        if (held().empty()) return;
        const Kernels& kernels = stepper_.kernels();
        kernels.copy(std::as_const(state_.z).view(), steps_of(inputs_, 0, 1), stream);
        for (std::size_t h = 0; h < draft_history_.size(); ++h) {
            stepper_.copy(state_.history[h], draft_history_[h], stream);
        }
        for (index_t r = 1; r < round().count; ++r) {
            const latent_view z = steps_of(inputs_, r, 1);
            kernels.copy(steps_of(inputs_, r - 1, 1), z, stream);
            const const_latent_view prediction = reused_.at(
                step_ + r - 1, stepper_.schedule(), steps_of(predictions_, r, 1), kernels, stream);
            stepper_.step(step_ + r - 1, z, draft_history_, held(), prediction, noise, stream);
        }
    }

    template <noise_source Noise>
    void advance_in_round(const Noise& noise, stream_ref stream) {
        const index_t called = called_ + std::min(most_, round().count - called_);
        if (called < round().count) {
            called_ = called;
            return;
        }
        // An exception from here on leaves the latent between steps: it must be started again.
        started_ = false;
        for (index_t r = 0; r < round().count; ++r) {
            const const_latent_view prediction = steps_of(predictions_, r, 1);
            stepper_.step(step_ + r, state_, held(), prediction, noise, stream);
            if (r + plan_.kept_predictions() >= round().count) {
                reused_.remember(step_ + r, prediction, stepper_.kernels(), stream);
            }
        }
        step_ += round().count;
        ++round_;
        called_ = 0;
        drafted_ = false;
        started_ = true;
    }

    void begin() {
        step_ = 0;
        round_ = 0;
        called_ = 0;
        drafted_ = false;
        started_ = false;
        requested_ = false;
        reused_.forget();
        stepper_.place(state_, {held(), held()});
    }

    Model* model_;
    batch_step_plan plan_;
    latpar::detail::latent_stepper<Schedule, Kernels> stepper_;
    index_t most_;  ///< steps in one call of the model
    latent_state state_;
    latent_block inputs_;       ///< [p B, C, held]: the latents of a batch
    latent_block predictions_;  ///< what the model made of them
    std::vector<latent_block> draft_history_;
    latpar::detail::reused_predictions reused_;
    index_t step_ = 0;
    std::size_t round_ = 0;
    index_t called_ = 0;  ///< steps of the batch whose predictions are there
    bool drafted_ = false;
    bool started_ = false;
    bool requested_ = false;
    std::vector<sample_info> samples_;
};

}  // namespace latpar::inline v0::loop

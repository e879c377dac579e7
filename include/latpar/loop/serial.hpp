// SPDX-License-Identifier: Apache-2.0
// The plain sampling loop: one denoiser call and one scheduler step after another.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/denoise/detail/spread.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/loop/detail/latent_stepper.hpp>

#include <algorithm>
#include <array>
#include <concepts>
#include <string_view>
#include <utility>

namespace latpar::inline v0::loop {

/// Samples step by step; a denoiser that is spread over ranks is stepped where its parts lie.
///
/// `run()` does all of it. An engine that owns its loop drives it as a stepper:
///     while (!s.done()) {
///         auto r = s.next_request();
///         model(r.z, r.info, r.prediction, stream);
///         s.advance();
///     }
///
/// An engine whose model fails, or that gives up, calls abort(), or the model's other ranks wait.
///
/// Ranks: with a distributed denoiser, all of its ranks make every call.
/// Memory: latent, prediction and history over what this rank holds, from `source`, taken by the
/// constructor.
/// Errors: usage_error on every rank, before payload moves, if the ranks' schedules differ or are
/// not what the model's plan was made for, and for a scheduler that is not elementwise where only a
/// part is stepped. An exception on one rank makes the others throw with its message.
template <denoiser Model, scheduler Schedule, kernel_set Kernels = kernel::host>
class serial {
public:
    using request = loop::request;

    /// `extents` are those of the whole latent, [B, C, T, H, W]. The model stays the caller's.
    serial(Model& model, Schedule schedule, const std::array<index_t, 5>& extents,
           Kernels kernels = {}, dtype type = dtype::f32, memory_source source = {})
        : model_(&model), stepper_(std::move(schedule), extents, std::move(kernels), type, source) {
        // Refused on all ranks alike, which may try again: nothing is aborted.
        ranks().agree(stepper_.problem(), stepper_.fingerprint());
        guarded_call([&] { take_memory(); });
    }

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

    [[nodiscard]] index_t steps() const noexcept { return stepper_.schedule().steps(); }
    /// The step that is next.
    [[nodiscard]] index_t step() const noexcept { return step_; }
    [[nodiscard]] bool done() const noexcept { return step_ == steps(); }

    /// The next call of the model.
    [[nodiscard]] request next_request(stream_ref = {}) {
        detail::require_started(started_, done());
        requested_ = true;
        stepper_.place(state_.prediction, ranks().placement_at(step_).stepped);
        return stepper_.request_for(step_, state_);
    }
    /// The same, as loops take it that step on before they ask.
    template <noise_source Noise>
    [[nodiscard]] request next_request(const Noise&, stream_ref stream = {}) {
        return next_request(stream);
    }

    /// Takes a prediction that was made elsewhere, in place of one written to the request's view.
    void supply(const_latent_view prediction, stream_ref stream = {}) {
        detail::require_requested(requested_);
        stepper_.kernels().copy(prediction, state_.prediction.view(), stream);
    }

    /// Steps the scheduler with the prediction. `noise` serves schedulers that draw some.
    template <noise_source Noise>
    void advance(const Noise& noise, stream_ref stream = {}) {
        advance_with(std::as_const(state_.prediction).view(), noise, stream);
    }

    /// As above, for a scheduler that draws no noise (usage_error otherwise).
    void advance(stream_ref stream = {}) { advance(detail::no_noise{}, stream); }

    /// Runs all steps that are left. `on_step(step)` is called after each, on the ranks that pass
    /// it; when it returns false on any, all stop there and the result is false. After the last
    /// step it is too late to stop.
    template <noise_source Noise, std::predicate<index_t> OnStep>
    bool run(const Noise& noise, OnStep&& on_step, stream_ref stream = {}) {
        return guarded_call([&] {
            detail::require_started(started_, false);
            if (stepper_.problem().draws_noise) stepper_.agree_on_noise(ranks(), noise, stream);
            const bool is_watched = ranks().any_rank(detail::can_stop<OnStep>);
            while (!done()) {
                make_step(noise, stream);
                const bool stop = !on_step(step_ - 1);
                if (is_watched && !done() && ranks().any_rank(stop)) return false;
            }
            return true;
        });
    }
    template <noise_source Noise>
    void run(const Noise& noise, stream_ref stream = {}) {
        run(noise, detail::carry_on{}, stream);
    }

    /// The latent as it stands, whole, on the ranks that get the result; others may pass {}.
    void collect(latent_view out, stream_ref stream = {}) {
        guarded_call([&] {
            detail::require_started(started_, false);
            ranks().collect(step_, state_, out, stepper_.kernels(), stream);
        });
    }

    /// Ends the waiting of the model's other ranks, with the reason.
    void abort(std::string_view reason) { ranks().abort(reason); }

    /// What this rank holds between steps; where a step was one pass with the stitch of its
    /// prediction, that is not there.
    [[nodiscard]] latent_state& state() noexcept { return state_; }

private:
    [[nodiscard]] detail::spread<Model> ranks() const { return {*model_, stepper_.spatial()}; }

    /// Runs f; if it throws, the other ranks throw too instead of waiting for this one.
    template <class F>
    decltype(auto) guarded_call(F&& f) {
        detail::spread<Model> all = ranks();
        return guarded(all, std::forward<F>(f));
    }

    /// A call of the model and a step; in one pass over memory where the model leaves its prediction
    /// in parts, the scheduler takes them and the kernels are the faster for it.
    template <noise_source Noise>
    void make_step(const Noise& noise, stream_ref stream) {
        const request next = next_request(stream);
        if constexpr (requires(const Schedule& schedule, const step_state& state) {
                          requires(bool{Kernels::prefers_fewer_passes});
                          schedule.step(step_, state, model_->parts_of(next.z, next.info, stream),
                                        stepper_.kernels(), stream);
                      }) {
            if (model_->leaves_parts()) {
                advance_with(model_->parts_of(next.z, next.info, stream), noise, stream);
                return;
            }
        }
        (*model_)(next.z, next.info, next.prediction, stream);
        advance(noise, stream);
    }
    template <class Prediction, noise_source Noise>
    void advance_with(const Prediction& prediction, const Noise& noise, stream_ref stream) {
        detail::require_requested(requested_);
        requested_ = false;
        guarded_call([&] {
            stepper_.step(step_, state_, ranks().placement_at(step_).stepped, prediction, noise,
                          stream);
            ranks().relayout(step_, state_, stream);
            ++step_;
        });
    }

    void take_memory() {
        index_t held = 0;
        index_t stepped = 0;
        for (index_t i = 0; i <= steps(); ++i) {
            const placement at = ranks().placement_at(i);
            held = std::max(held, at.held.volume());
            stepped = std::max(stepped, at.stepped.volume());
            detail::require(
                Schedule::elementwise || at.stepped.empty() ||
                    at.stepped == box_of(stepper_.spatial()),
                "this scheduler cannot step a part of the latent; let every rank hold all of it");
        }
        state_ = stepper_.take_state(held, stepped);
        stepper_.take_noise(std::max(held, stepped));
    }

    void begin() {
        step_ = 0;
        started_ = false;
        requested_ = false;
        stepper_.place(state_, ranks().placement_at(0));
    }

    Model* model_;
    detail::latent_stepper<Schedule, Kernels> stepper_;
    latent_state state_;
    index_t step_ = 0;
    bool started_ = false;
    bool requested_ = false;
};

}  // namespace latpar::inline v0::loop

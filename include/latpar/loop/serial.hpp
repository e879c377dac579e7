// SPDX-License-Identifier: Apache-2.0
// The plain sampling loop: one denoiser call and one scheduler step after another.
#pragma once

#include <latpar/denoise/distributed_denoiser.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/schedule/noise_source.hpp>
#include <latpar/schedule/scheduler.hpp>

#include <algorithm>
#include <array>
#include <exception>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

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
/// Ranks: with a distributed denoiser, all of its ranks make every call.
/// Memory: latent, prediction and history over what this rank holds, from `source`, taken by the
/// constructor.
/// Errors: usage_error on every rank, before payload moves, if the ranks' schedules differ or are
/// not what the model's plan was made for, and for a scheduler that is not elementwise where only a
/// part is stepped. An exception on one rank makes the others throw with its message.
template <denoiser Model, scheduler Schedule, kernel_set Kernels = kernel::host>
class serial {
public:
    /// What to ask the model next. Views stay valid until advance().
    struct request {
        const_latent_view z;
        step_info info;
        latent_view prediction;
    };

    /// `extents` are those of the whole latent, [B, C, T, H, W]. The model stays the caller's.
    serial(Model& model, Schedule schedule, const std::array<index_t, 5>& extents,
           Kernels kernels = {}, dtype type = dtype::f32, memory_source source = {})
        : model_(&model),
          schedule_(std::move(schedule)),
          extents_(extents),
          kernels_(std::move(kernels)) {
        static_assert(Schedule::model_calls_per_step == 1,
                      "loop::serial calls the model once a step; this scheduler wants more");
        if constexpr (distributed_denoiser<Model>) {
            model.agree(latent_problem::of(extents, schedule_, type), fingerprint());
        }
        abort_if_thrown([&] { take_memory(type, source); });
    }

    /// Begins with the noise of key (0, 0); the same source feeds schedulers that draw noise.
    template <noise_source Noise>
    void start(const Noise& noise, stream_ref stream = {}) {
        begin();
        abort_if_thrown([&] {
            agree_on_noise(noise, stream);
            const box where = state_.z.where();
            if (where.empty()) return;
            if (state_.z.view().type == dtype::f32) {
                noise.fill(state_.z.view(), where, {0, 0}, stream);
            } else {
                noise_.place(extents_[0], extents_[1], where);
                noise.fill(noise_.view(), where, {0, 0}, stream);
                kernels_.copy(std::as_const(noise_).view(), state_.z.view(), stream);
            }
        });
    }

    /// Begins with a whole latent of which this rank takes what it holds.
    void start(const_latent_view initial, stream_ref stream = {}) {
        detail::require(initial.extents == extents_,
                        "the initial latent has other extents than the loop");
        begin();
        kernels_.copy(subview(initial, state_.z.where()), state_.z.view(), stream);
    }

    [[nodiscard]] index_t steps() const noexcept { return schedule_.steps(); }
    /// The step that is next.
    [[nodiscard]] index_t step() const noexcept { return step_; }
    [[nodiscard]] bool done() const noexcept { return step_ == steps(); }

    [[nodiscard]] request next_request() {
        detail::require(started_ && !done(), started_
                                                 ? "all steps are done; start again"
                                                 : "there is no latent to step; call start first");
        const placement at = place(step_);
        const auto n = static_cast<std::size_t>(step_);
        std::fill(samples_.begin(), samples_.end(),
                  sample_info{step_,
                              schedule_.timesteps()[n],
                              schedule_.sigmas()[n],
                              guidance_branch::guided,
                              {}});
        state_.prediction.place(extents_[0], extents_[1], at.stepped);
        return {std::as_const(state_.z).view(),
                {samples_, at.held, spatial(), {}},
                state_.prediction.view()};
    }

    /// Takes a prediction that was made elsewhere, in place of one written to the request's view.
    void supply(const_latent_view prediction, stream_ref stream = {}) {
        kernels_.copy(prediction, state_.prediction.view(), stream);
    }

    /// Steps the scheduler with the prediction. `noise` serves schedulers that draw some.
    template <noise_source Noise>
    void advance(const Noise& noise, stream_ref stream = {}) {
        const placement at = place(step_);
        if (!at.stepped.empty()) {
            step_state now{
                state_.z.view(at.stepped), std::as_const(state_.prediction).view(), {}, {}};
            history_views_.clear();
            for (latent_block& h : state_.history) history_views_.push_back(h.view());
            now.history = history_views_;
            if (schedule_.draws_noise(step_)) {
                noise_.place(extents_[0], extents_[1], at.stepped);
                noise.fill(noise_.view(), at.stepped, {1, step_}, stream);
                now.noise = noise_.view();
            }
            schedule_.step(step_, now, kernels_, stream);
        }
        if constexpr (distributed_denoiser<Model>) model_->relayout(step_, state_, stream);
        ++step_;
    }

    /// As above, for a scheduler that draws no noise (usage_error otherwise).
    void advance(stream_ref stream = {}) { advance(silence{}, stream); }

    /// Runs all steps that are left. `on_step(step)` is called after each; when it returns false on
    /// any rank, all stop there and the result is false.
    template <noise_source Noise, class OnStep>
    bool run(const Noise& noise, OnStep&& on_step, stream_ref stream = {}) {
        return abort_if_thrown([&] {
            while (!done()) {
                const request next = next_request();
                (*model_)(next.z, next.info, next.prediction, stream);
                advance(noise, stream);
                bool stop = !on_step(step_ - 1);
                if constexpr (distributed_denoiser<Model>) stop = model_->any_rank(stop);
                if (stop) return false;
            }
            return true;
        });
    }
    template <noise_source Noise>
    void run(const Noise& noise, stream_ref stream = {}) {
        run(
            noise, [](index_t) { return true; }, stream);
    }

    /// The latent as it stands, whole, on the ranks that get the result; others may pass {}.
    void collect(latent_view out, stream_ref stream = {}) {
        detail::require(started_, "there is no latent to collect; call start first");
        if constexpr (distributed_denoiser<Model>) {
            model_->collect(step_, state_, out, stream);
        } else {
            kernels_.copy(std::as_const(state_.z).view(), out, stream);
        }
    }

    /// What this rank holds between steps.
    [[nodiscard]] latent_state& state() noexcept { return state_; }

private:
    struct silence {
        void fill(latent_view, const box&, noise_key, stream_ref) const {
            throw usage_error("this scheduler draws noise; pass a noise source");
        }
    };

    void take_memory(dtype type, memory_source source) {
        index_t held = 0;
        index_t stepped = 0;
        for (index_t i = 0; i <= steps(); ++i) {
            const placement at = place(i);
            held = std::max(held, at.held.volume());
            stepped = std::max(stepped, at.stepped.volume());
            detail::require(
                Schedule::elementwise || at.stepped.empty() || at.stepped == box_of(spatial()),
                "this scheduler cannot step a part of the latent; let every rank hold all of it");
        }
        const index_t element = extents_[0] * extents_[1] * size_of(type);
        state_.z = latent_block(held * element, type, source);
        state_.prediction = latent_block(stepped * element, type, source);
        bool noisy = false;
        for (index_t i = 0; i < steps(); ++i) noisy = noisy || schedule_.draws_noise(i);
        // Noise is drawn in float32.
        if (noisy || type != dtype::f32)
            noise_ = latent_block(std::max(held, stepped) * extents_[0] * extents_[1] * 4,
                                  dtype::f32, source);
        for (index_t k = 0; k < schedule_.history_size(); ++k) {
            state_.history.emplace_back(stepped * element, type, source);
        }
        samples_.resize(static_cast<std::size_t>(extents_[0]));
    }

    /// Tells one schedule from another.
    [[nodiscard]] std::string fingerprint() const {
        std::ostringstream out;
        out << std::hexfloat << schedule_.name();
        for (const double t : schedule_.timesteps()) out << ' ' << t;
        for (const double s : schedule_.sigmas()) out << ' ' << s;
        return std::move(out).str();
    }

    /// Ranks that draw from different sources would sample a mixture: compares a value.
    template <noise_source Noise>
    void agree_on_noise(const Noise& noise, stream_ref stream) {
        if constexpr (distributed_denoiser<Model>) {
            if (kernels_.space() != memory_space::host) return;
            latent probe({extents_[0], extents_[1], 1, 1, 1});
            noise.fill(probe.view(), box_of({1, 1, 1}), {0, 0}, stream);
            std::ostringstream out;
            out << "noise source whose first value is " << std::hexfloat
                << probe.template elements<float>()[0];
            model_->agree(latent_problem::of(extents_, schedule_, state_.z.view().type), out.str());
        }
    }

    /// Runs f; if it throws, the other ranks throw too instead of waiting for this one.
    template <class F>
    decltype(auto) abort_if_thrown(F&& f) {
        if constexpr (distributed_denoiser<Model>) {
            try {
                return f();
            } catch (const std::exception& error) {
                model_->abort(error.what());
                throw;
            } catch (...) {
                model_->abort("an exception that is not a std::exception");
                throw;
            }
        } else {
            return f();
        }
    }

    [[nodiscard]] extents3 spatial() const noexcept {
        return {extents_[2], extents_[3], extents_[4]};
    }
    [[nodiscard]] placement place(index_t step) const {
        if constexpr (distributed_denoiser<Model>) {
            return model_->placement_at(step);
        } else {
            return {box_of(spatial()), box_of(spatial())};
        }
    }
    void begin() {
        step_ = 0;
        started_ = true;
        const placement at = place(0);
        state_.z.place(extents_[0], extents_[1], at.held);
        for (latent_block& h : state_.history) h.place(extents_[0], extents_[1], at.stepped);
    }

    Model* model_;
    Schedule schedule_;
    std::array<index_t, 5> extents_;
    Kernels kernels_;
    latent_state state_;
    latent_block noise_;
    index_t step_ = 0;
    bool started_ = false;
    std::vector<sample_info> samples_;
    std::vector<latent_view> history_views_;
};

}  // namespace latpar::inline v0::loop

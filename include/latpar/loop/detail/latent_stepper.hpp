// SPDX-License-Identifier: Apache-2.0
// What every loop does with a latent: take its memory, start it from noise, step it.
#pragma once

#include <latpar/denoise/distributed_denoiser.hpp>
#include <latpar/kernel/kernel_set.hpp>
#include <latpar/loop/request.hpp>
#include <latpar/schedule/detail/hash_of.hpp>
#include <latpar/schedule/noise_source.hpp>
#include <latpar/schedule/scheduler.hpp>

#include <algorithm>
#include <concepts>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace latpar::inline v0::detail {

/// A noise source for schedulers that draw none.
struct no_noise {
    void fill(latent_view, const box&, noise_key, stream_ref) const {
        throw usage_error("this scheduler draws noise; pass a noise source");
    }
};

/// The callback of a run that nobody watches.
struct carry_on {
    constexpr bool operator()(index_t) const noexcept { return true; }
};
/// Whether a callback may want a run to stop. Ranks whose callbacks differ in that agree on it.
template <class OnStep>
inline constexpr bool can_stop = !std::same_as<std::remove_cvref_t<OnStep>, carry_on>;

/// Errors: usage_error unless a latent was started and is not done.
inline void require_started(bool started, bool done) {
    require(started && !done,
            started ? "all steps are done; start again" : "there is no latent; call start first");
}
/// Errors: usage_error unless the model was asked for what is now given.
inline void require_requested(bool requested) {
    require(requested, "nothing was asked of the model; call next_request first");
}

/// Steps latents through a schedule. The latents' state is the caller's; noise and bookkeeping,
/// which all of them share, are kept here.
template <scheduler Schedule, kernel_set Kernels>
class latent_stepper {
public:
    /// `extents` are those of the whole latent, [B, C, T, H, W].
    latent_stepper(Schedule schedule, const std::array<index_t, 5>& extents, Kernels kernels,
                   dtype type, memory_source source)
        : schedule_(std::move(schedule)),
          extents_(extents),
          kernels_(std::move(kernels)),
          type_(type),
          source_(source) {
        static_assert(Schedule::model_calls_per_step == 1,
                      "a loop calls the model once a step; this scheduler wants more");
    }

    [[nodiscard]] const Schedule& schedule() const noexcept { return schedule_; }
    [[nodiscard]] const Kernels& kernels() const noexcept { return kernels_; }
    [[nodiscard]] extents3 spatial() const noexcept {
        return {extents_[2], extents_[3], extents_[4]};
    }
    [[nodiscard]] latent_problem problem() const {
        return latent_problem::of(extents_, schedule_, type_);
    }

    /// Memory for a latent that is never larger than `held`, and stepped over `stepped` positions.
    [[nodiscard]] latent_state take_state(index_t held, index_t stepped) {
        latent_state out;
        out.z = take_block(held);
        out.prediction = take_block(stepped);
        for (index_t k = 0; k < schedule_.history_size(); ++k) {
            out.history.push_back(take_block(stepped));
        }
        return out;
    }
    [[nodiscard]] latent_block take_block(index_t positions) {
        return latent_block(positions * extents_[0] * extents_[1] * size_of(type_), type_, source_);
    }
    /// Memory for the noise of states that are never larger than this.
    void take_noise(index_t positions) {
        const index_t bytes = problem().noise_bytes(positions);
        if (bytes > 0) noise_ = latent_block(bytes, dtype::f32, source_);
    }

    /// Why a loop cannot sample what its plan was made for, if so.
    [[nodiscard]] std::optional<std::string> complaint_about(const latent_problem& planned,
                                                             std::string_view loop) const {
        if (problem() == planned) return std::nullopt;
        return concat(loop, " was planned for ", planned.steps,
                      " steps or a history other than those of the schedule ", schedule_.name(),
                      " with ", schedule_.steps(),
                      " steps; plan with latent_problem::of the extents and schedule of the loop");
    }
    /// Why a loop that keeps predictions from step to step cannot run where the latent lies as
    /// `placement_at(step)` says, if so; it was planned for `held` at every step.
    template <class PlacementAt>
    [[nodiscard]] std::optional<std::string> complaint_about(const box& held, std::string_view loop,
                                                             PlacementAt&& placement_at) const {
        for (index_t i = 0; i <= schedule_.steps(); ++i) {
            const placement at = placement_at(i);
            if (at.held == held && at.stepped == held) continue;
            return concat("at step ", i, " the model holds ", at.held, " and steps ", at.stepped,
                          " of the latent here, ", loop, " was planned for ", held,
                          " at every step: predictions are kept from step to step, so the latent "
                          "must not be cut anew at each; plan latent_parallel with the layout "
                          "replicated, or with central and tell the loop's plan what a rank holds "
                          "(its option held)");
        }
        if (!Schedule::elementwise && !held.empty() && held != box_of(spatial())) {
            return "this scheduler cannot step a part of the latent; let every rank hold all of it";
        }
        return std::nullopt;
    }

    void place(latent_block& block, const box& where) const {
        block.place(extents_[0], extents_[1], where);
    }
    void place(latent_state& state, const placement& at) const {
        place(state.z, at.held);
        place(state.prediction, at.stepped);
        for (latent_block& h : state.history) place(h, at.stepped);
    }

    /// Noise of key (0, 0), in a state that was placed.
    template <noise_source Noise>
    void start(latent_state& state, const Noise& noise, stream_ref stream) {
        const box where = state.z.where();
        if (where.empty()) return;
        fill(
            state.z,
            [&](latent_view out) {
                noise.fill(out, where, {0, 0}, stream);
            },
            stream);
    }
    /// Values that `write(view)` writes in float32, in a block that was placed; the memory of noise
    /// serves where the block is narrower.
    template <class Write>
    void fill(latent_block& block, Write&& write, stream_ref stream) {
        if (type_ == dtype::f32) {
            write(block.view());
            return;
        }
        place(noise_, block.where());
        write(noise_.view());
        kernels_.copy(std::as_const(noise_).view(), block.view(), stream);
    }
    /// A whole latent, of which the state takes what it holds.
    void start(latent_state& state, const_latent_view initial, stream_ref stream) const {
        require(initial.extents == extents_, "the initial latent has other extents than the loop");
        kernels_.copy(subview(initial, state.z.where()), state.z.view(), stream);
    }

    /// The scheduler's step i with a prediction for `stepped`, which is part of what is held: a view,
    /// or what it is stitched from.
    template <noise_source Noise, class Prediction>
    void step(index_t i, latent_state& state, const box& stepped, const Prediction& prediction,
              const Noise& noise, stream_ref stream) {
        if (stepped.empty()) return;
        step(i, state.z.view(stepped), state.history, stepped, prediction, noise, stream);
    }
    /// The same for a latent and a history that cover `stepped`.
    template <noise_source Noise, class Prediction>
    void step(index_t i, latent_view z, std::vector<latent_block>& history, const box& stepped,
              const Prediction& prediction, const Noise& noise, stream_ref stream) {
        if (stepped.empty()) return;
        history_views_.clear();
        for (latent_block& h : history) history_views_.push_back(h.view());
        constexpr bool is_stitched = std::same_as<Prediction, kernel::stitched_input>;
        step_state now{z, {}, history_views_, {}};
        if constexpr (!is_stitched) now.prediction = prediction;
        if (schedule_.draws_noise(i)) {
            place(noise_, stepped);
            noise.fill(noise_.view(), stepped, {1, i}, stream);
            now.noise = noise_.view();
        }
        if constexpr (is_stitched) {
            schedule_.step(i, now, prediction, kernels_, stream);
        } else {
            schedule_.step(i, now, kernels_, stream);
        }
    }

    void copy(const latent_block& from, latent_block& to, stream_ref stream) const {
        place(to, from.where());
        if (!from.where().empty()) kernels_.copy(from.view(), to.view(), stream);
    }
    /// z and history.
    void copy(const latent_state& from, latent_state& to, stream_ref stream) const {
        copy(from.z, to.z, stream);
        for (std::size_t k = 0; k < from.history.size(); ++k) {
            copy(from.history[k], to.history[k], stream);
        }
    }

    [[nodiscard]] sample_info sample_at(index_t i) const {
        const auto n = static_cast<std::size_t>(i);
        return {i, schedule_.timesteps()[n], schedule_.sigmas()[n], guidance_branch::guided, {}};
    }
    /// The model call of step i: reads the state's z, writes its prediction.
    [[nodiscard]] loop::request request_for(index_t i, latent_state& state) {
        samples_.assign(static_cast<std::size_t>(extents_[0]), sample_at(i));
        return {std::as_const(state.z).view(),
                {samples_, state.z.where(), spatial(), {}},
                state.prediction.view()};
    }

    /// Tells one schedule from another.
    [[nodiscard]] std::string fingerprint() const {
        if constexpr (requires {
                          { schedule_.fingerprint() } -> std::convertible_to<std::string>;
                      }) {
            return concat("schedule ", schedule_.fingerprint());
        } else {
            const std::span<const double> timesteps = schedule_.timesteps();
            const std::span<const double> sigmas = schedule_.sigmas();
            return concat("schedule ", schedule_.name(), " of ", schedule_.steps(), " steps (",
                          hash_of(timesteps, sigmas), ')');
        }
    }
    /// Ranks that draw from different sources would sample a mixture: agrees with those of a model
    /// (`spread`) on the source.
    template <class Ranks, noise_source Noise>
    void agree_on_noise(Ranks ranks, const Noise& noise, stream_ref stream) const {
        if constexpr (Ranks::has_others) ranks.agree(problem(), fingerprint(noise, stream));
    }
    /// Tells one noise source from another, as it does itself or else by its first value; empty where
    /// the host cannot read that.
    template <noise_source Noise>
    [[nodiscard]] std::string fingerprint(const Noise& noise, stream_ref stream) const {
        if constexpr (requires {
                          { noise.fingerprint() } -> std::convertible_to<std::string>;
                      }) {
            return concat("noise source ", noise.fingerprint());
        }
        if (kernels_.space() != memory_space::host) return {};
        latent probe({extents_[0], extents_[1], 1, 1, 1});
        noise.fill(probe.view(), box_of({1, 1, 1}), {0, 0}, stream);
        std::ostringstream out;
        out << "noise source whose first value is " << std::hexfloat
            << probe.template elements<float>()[0];
        return std::move(out).str();
    }

private:
    Schedule schedule_;
    std::array<index_t, 5> extents_;
    Kernels kernels_;
    dtype type_;
    memory_source source_;
    latent_block noise_;
    // Reused from call to call, so that the steady state allocates nothing.
    std::vector<latent_view> history_views_;
    std::vector<sample_info> samples_;
};

}  // namespace latpar::inline v0::detail

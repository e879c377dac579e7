// SPDX-License-Identifier: Apache-2.0
// A scheduler whose every step is linear in the latent, the prediction, the history and the noise.
#pragma once

#include <latpar/schedule/scheduler.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

namespace latpar::inline v0 {

/// A linear combination of what a scheduler step reads: the latent, the prediction, the history
/// and the noise.
///
/// Sums and multiples of forms are forms, so that a step rule is written as its paper has it and
/// folds into one coefficient for each tensor.
class linear_form {
public:
    static constexpr index_t max_history = 4;
    static constexpr std::size_t size = 3 + max_history;

    linear_form() = default;
    [[nodiscard]] static constexpr linear_form z() { return unit(0); }
    [[nodiscard]] static constexpr linear_form prediction() { return unit(1); }
    [[nodiscard]] static constexpr linear_form noise() { return unit(2); }
    /// History tensor k. Errors: usage_error unless 0 <= k < max_history.
    [[nodiscard]] static constexpr linear_form history(index_t k) {
        if (k < 0 || k >= max_history) {
            throw usage_error(
                detail::concat("history tensor ", k, " was asked for; use 0 to ", max_history - 1));
        }
        return unit(static_cast<std::size_t>(3 + k));
    }

    /// In the order z, prediction, noise, history 0, 1, ...
    [[nodiscard]] constexpr std::span<const double, size> coefficients() const { return values_; }

    friend constexpr linear_form operator+(linear_form a, const linear_form& b) {
        for (std::size_t i = 0; i < size; ++i) a.values_[i] += b.values_[i];
        return a;
    }
    friend constexpr linear_form operator*(double factor, linear_form a) {
        for (double& value : a.values_) value *= factor;
        return a;
    }
    friend constexpr linear_form operator-(const linear_form& a, const linear_form& b) {
        return a + -1.0 * b;
    }

private:
    [[nodiscard]] static constexpr linear_form unit(std::size_t i) {
        linear_form out;
        out.values_[i] = 1;
        return out;
    }

    std::array<double, size> values_{};
};

/// What one step makes of its inputs: the next latent and the next history.
struct linear_step {
    linear_form z;
    std::vector<linear_form> history{};
};

/// Any sampler that is linear in (z, prediction, noise, history): a table of coefficients.
///
/// All of DDIM, Euler flow matching, DPM-Solver++ and UniPC are such tables; their factories
/// (`schedule::ddim`, `schedule::euler_flow`, ...) fill them. A step is one pass over memory,
/// whatever its order, and a user's own linear sampler needs no class of its own.
/// Coefficients are computed in double and rounded once to float32.
class linear_scheduler {
public:
    static constexpr bool elementwise = true;
    static constexpr index_t model_calls_per_step = 1;

    /// `steps[i]` is the rule of step i; all of them keep the same number of history tensors. What
    /// no later step reads is not computed.
    ///
    /// Errors: usage_error if there is no step, if timesteps are not as many as steps or sigmas not
    /// one more, if a number is not finite, or if step 0 reads history, which nobody has written.
    linear_scheduler(std::string name, std::vector<double> timesteps, std::vector<double> sigmas,
                     const std::vector<linear_step>& steps);

    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    [[nodiscard]] index_t steps() const noexcept { return static_cast<index_t>(timesteps_.size()); }
    [[nodiscard]] std::span<const double> timesteps() const noexcept { return timesteps_; }
    [[nodiscard]] std::span<const double> sigmas() const noexcept { return sigmas_; }
    [[nodiscard]] index_t history_size() const noexcept { return history_size_; }
    /// Errors: usage_error if there is no step i or no history tensor k.
    [[nodiscard]] bool history_live(index_t i, index_t k) const;
    /// Errors: usage_error if there is no step i.
    [[nodiscard]] bool draws_noise(index_t i) const;

    /// The (1 + history_size) x (3 + history_size) matrix of step i, by rows: next z, next history;
    /// columns z, prediction, noise, history.
    ///
    /// Errors: usage_error if there is no step i.
    [[nodiscard]] std::span<const float> coefficients(index_t i) const;

    /// One line that tells schedules apart whose names, timesteps, sigmas or coefficients differ.
    [[nodiscard]] std::string fingerprint() const;

    /// Makes `state` that of step i + 1, in place.
    ///
    /// Stream: ordered on `stream`, as the kernels are.
    /// Memory: a history tensor that the next step does not read becomes zero.
    /// Errors: usage_error if there is no step i, or the state has not the tensors that it reads.
    template <kernel_set Kernels>
    void step(index_t i, const step_state& state, const Kernels& kernels,
              stream_ref stream = {}) const {
        with_operands(i, state, [&](auto inputs, auto outputs) {
            kernels.linear_combination(inputs, coefficients(i), outputs, stream);
        });
    }
    /// The same with a prediction that is stitched on the way: one pass over memory for both.
    /// state.prediction is empty, prediction.index is not read.
    template <kernel_set Kernels>
    void step(index_t i, const step_state& state, kernel::stitched_input prediction,
              const Kernels& kernels, stream_ref stream = {}) const {
        prediction.index = 1;
        with_operands(i, state, [&](auto inputs, auto outputs) {
            kernels.stitch_combination(prediction, inputs, coefficients(i), outputs, stream);
        });
    }
    /// Calls combine(inputs, outputs) with the tensors that a step combines, in the order of its
    /// matrix. Errors: as `step`.
    template <class Combine>
    void with_operands(index_t i, const step_state& state, Combine&& combine) const {
        check(i, state);
        std::array<const_latent_view, linear_form::size> inputs{state.z, state.prediction,
                                                                state.noise};
        std::array<latent_view, 1 + linear_form::max_history> outputs{state.z};
        std::ranges::copy(state.history, inputs.begin() + 3);
        std::ranges::copy(state.history, outputs.begin() + 1);
        combine(std::span<const const_latent_view>(inputs).first(columns()),
                std::span<const latent_view>(outputs).first(rows()));
    }

    friend bool operator==(const linear_scheduler&, const linear_scheduler&) = default;

private:
    [[nodiscard]] std::size_t rows() const noexcept {
        return static_cast<std::size_t>(1 + history_size_);
    }
    [[nodiscard]] std::size_t columns() const noexcept {
        return static_cast<std::size_t>(3 + history_size_);
    }
    [[nodiscard]] bool reads(index_t i, std::size_t column) const;
    void drop_unread_history();
    void check(index_t i, const step_state& state) const;

    std::string name_;
    std::vector<double> timesteps_;
    std::vector<double> sigmas_;
    index_t history_size_ = 0;
    std::vector<float> coefficients_;
};

static_assert(scheduler<linear_scheduler>);

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// What is sampled: the shapes, and what each step reads of the scheduler's history.
#pragma once

#include <latpar/schedule/scheduler.hpp>

#include <array>
#include <string>
#include <vector>

namespace latpar::inline v0 {

/// A sampling run as a plan sees it: a value without model, noise or ranks.
struct latent_problem {
    index_t batch = 1;
    index_t channels = 16;
    index_t prediction_channels = 16;
    extents3 extents{};
    index_t steps = 0;
    dtype type = dtype::f32;  ///< of the latent and of predictions
    /// live_history[i][k]: whether step i reads history tensor k. Empty: no step reads any.
    std::vector<std::vector<bool>> live_history{};
    bool elementwise = true;
    bool draws_noise = false;  ///< whether any step draws noise

    /// The problem of sampling a latent of `extents` [B, C, T, H, W] with `schedule`.
    template <scheduler S>
    [[nodiscard]] static latent_problem of(const std::array<index_t, 5>& extents, const S& schedule,
                                           dtype type = dtype::f32) {
        latent_problem out;
        out.batch = extents[0];
        out.channels = out.prediction_channels = extents[1];
        out.extents = {extents[2], extents[3], extents[4]};
        out.steps = schedule.steps();
        out.type = type;
        out.elementwise = S::elementwise;
        for (index_t i = 0; i < schedule.steps(); ++i) {
            out.draws_noise = out.draws_noise || schedule.draws_noise(i);
        }
        for (index_t i = 0; i < schedule.steps() && schedule.history_size() > 0; ++i) {
            std::vector<bool>& live = out.live_history.emplace_back();
            for (index_t k = 0; k < schedule.history_size(); ++k) {
                live.push_back(schedule.history_live(i, k));
            }
        }
        return out;
    }

    /// Of the whole latent, [B, C, T, H, W].
    [[nodiscard]] std::array<index_t, 5> latent_extents() const noexcept {
        return {batch, channels, extents[0], extents[1], extents[2]};
    }
    [[nodiscard]] index_t history_size() const noexcept {
        return live_history.empty() ? 0 : static_cast<index_t>(live_history.front().size());
    }
    /// Whether a step reads a history tensor; no step beyond the last reads any.
    [[nodiscard]] bool reads_history(index_t step, index_t k) const {
        return step < static_cast<index_t>(live_history.size()) &&
               live_history[static_cast<std::size_t>(step)][static_cast<std::size_t>(k)];
    }
    /// What a loop takes to draw noise, for at most so many positions: it is drawn in float32.
    [[nodiscard]] index_t noise_bytes(index_t positions) const noexcept {
        return draws_noise || type != dtype::f32 ? positions * batch * channels * 4 : 0;
    }
    /// One line that is equal exactly if the problems are.
    [[nodiscard]] std::string fingerprint() const;
    friend bool operator==(const latent_problem&, const latent_problem&) = default;
};

namespace detail {

/// Errors: usage_error for a problem that cannot be sampled: no element, no step, a history of
/// other steps, a type that is not computed with, or more bytes than can be counted when `copies`
/// ranks or parts move all of it.
void check_problem(const latent_problem& problem, index_t copies = 1);

}  // namespace detail

}  // namespace latpar::inline v0

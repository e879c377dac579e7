// SPDX-License-Identifier: Apache-2.0
// The scheduler concept: how a latent moves from one noise level to the next.
#pragma once

#include <latpar/kernel/kernel_set.hpp>

#include <concepts>
#include <span>
#include <string_view>

namespace latpar::inline v0 {

/// The tensors that one scheduler step works on: all cover the same box of the global latent.
struct step_state {
    latent_view z;                 ///< the latent, stepped in place
    const_latent_view prediction;  ///< the (guided) prediction for z
    /// `history_size()` tensors like z, read and rewritten; before the first step their content
    /// does not matter.
    std::span<const latent_view> history{};
    /// Standard normal noise for z if `draws_noise(i)`, else not read.
    const_latent_view noise{};
};

/// A sampler's schedule and step rule: an immutable value. The state between steps is the latent
/// and `history_size()` tensors, which the caller owns, can clone, compare and send.
///
/// - `steps()`, `timesteps()` [steps], `sigmas()` [steps + 1].
/// - `history_live(i, k)`: whether step i reads history tensor k, be it only to keep it for a later
///   step: one that is not read need not reach the rank that steps, and is then lost.
/// - `draws_noise(i)`: whether step i reads `noise`.
/// - `elementwise`: each position of the latent is stepped by itself, so that parts of a latent can
///   be stepped apart. A policy that cuts the latent refuses a scheduler that is not.
/// - `model_calls_per_step`: denoiser calls that one step takes.
/// - `step(i, state, kernels, stream)`.
///
/// A schedule may have `schedule.fingerprint()`, a text that is the same for schedules that make the
/// same steps and no others: by it ranks find out that they do not step alike, and a saved video
/// that it was another. Where it is missing, name, timesteps and sigmas serve.
template <class S>
concept scheduler = std::copyable<S> &&
    requires(const S& schedule, index_t i, const step_state& state,
             const kernel::archetype& kernels, stream_ref stream) {
    { schedule.name() } -> std::convertible_to<std::string_view>;
    { schedule.steps() } -> std::same_as<index_t>;
    { schedule.timesteps() } -> std::convertible_to<std::span<const double>>;
    { schedule.sigmas() } -> std::convertible_to<std::span<const double>>;
    { schedule.history_size() } -> std::same_as<index_t>;
    { schedule.history_live(i, i) } -> std::same_as<bool>;
    { schedule.draws_noise(i) } -> std::same_as<bool>;
    { S::elementwise } -> std::convertible_to<bool>;
    { S::model_calls_per_step } -> std::convertible_to<index_t>;
    schedule.step(i, state, kernels, stream);
};

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// Denoisers whose latent is spread over ranks, and the state that a loop keeps for them.
#pragma once

#include <latpar/core/latent_block.hpp>
#include <latpar/denoise/denoiser.hpp>
#include <latpar/schedule/latent_problem.hpp>

#include <concepts>
#include <string_view>
#include <vector>

namespace latpar::inline v0 {

/// What a rank has of a step: z over `held`, the prediction and the scheduler's step over
/// `stepped`.
struct placement {
    box held{};
    box stepped{};
};

/// What a loop keeps between denoising steps: z over placement::held, the rest over
/// placement::stepped.
struct latent_state {
    latent_block z;
    latent_block prediction;
    std::vector<latent_block> history;
};

/// A denoiser that cuts the latent between its ranks and lets the loop step only a part of it.
///
/// Before step i a rank holds z over `placement_at(i).held` (i = steps: at the end); the call reads
/// that and writes the prediction over `placement_at(i).stepped`, either may be empty; info.window
/// is the held box.
/// - `agree(problem, text)`: usage_error on every rank if `problem` is not the one that was
///   planned, or `text`, whatever a loop wants to be the same everywhere, differs.
/// - `relayout(i, state, stream)`: after the scheduler's step i; moves z and the history that is
///   still read to where step i + 1 needs them.
/// - `collect(i, state, out, stream)`: brings z as it lies before step i together in `out`, the
///   whole latent, on the ranks that get the result; others may pass an empty view.
/// - `any_rank(flag)`: whether any rank passed true.
/// - `abort(reason)`: makes the other ranks throw when this one cannot go on.
///
/// Ranks: all of them make every call, in the same order.
template <class D>
concept distributed_denoiser = denoiser<D> &&
    requires(D& model, const D& fixed, index_t step, latent_state& state, latent_view out,
             stream_ref stream, const latent_problem& problem, std::string_view text) {
    { fixed.placement_at(step) } -> std::same_as<placement>;
    model.agree(problem, text);
    model.relayout(step, state, stream);
    model.collect(step, state, out, stream);
    { model.any_rank(true) } -> std::same_as<bool>;
    model.abort(text);
};

}  // namespace latpar::inline v0

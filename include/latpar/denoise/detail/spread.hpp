// SPDX-License-Identifier: Apache-2.0
// One face for models that are spread over ranks and models that are not.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/denoise/distributed_denoiser.hpp>

#include <utility>

namespace latpar::inline v0::detail {

/// What this rank has of a step; a model that is not spread has all of the latent.
template <denoiser Model>
[[nodiscard]] placement placement_of(const Model& model, const extents3& whole, index_t step) {
    if constexpr (distributed_denoiser<Model>) {
        return model.placement_at(step);
    } else {
        return {box_of(whole), box_of(whole)};
    }
}

/// A model, seen as a distributed_denoiser: one that is not spread has all of the latent here, and
/// no other rank to ask.
template <denoiser Model>
class spread {
public:
    /// Whether there is another rank to ask.
    static constexpr bool has_others = distributed_denoiser<Model>;

    spread(Model& model, const extents3& whole) : model_(&model), whole_(whole) {}

    [[nodiscard]] placement placement_at(index_t step) const {
        return placement_of(*model_, whole_, step);
    }
    void agree(const latent_problem& problem, std::string_view text) {
        if constexpr (distributed_denoiser<Model>) {
            model_->agree(problem, text);
        } else {
            check_problem(problem);  // no plan has done it
        }
    }
    void relayout(index_t step, latent_state& state, stream_ref stream) {
        if constexpr (distributed_denoiser<Model>) model_->relayout(step, state, stream);
    }
    template <kernel_set Kernels>
    void collect(index_t step, latent_state& state, latent_view out, const Kernels& kernels,
                 stream_ref stream) {
        if constexpr (distributed_denoiser<Model>) {
            model_->collect(step, state, out, stream);
        } else {
            kernels.copy(std::as_const(state.z).view(), out, stream);
        }
    }
    [[nodiscard]] bool any_rank(bool flag) {
        if constexpr (distributed_denoiser<Model>) {
            return model_->any_rank(flag);
        } else {
            return flag;
        }
    }
    void abort(std::string_view reason) { abort_model(*model_, reason); }

private:
    Model* model_;
    extents3 whole_;
};

/// An agreement that all ranks of a policy refuse alike, but for those that the model has beside
/// them, which must be told.
template <denoiser Model, class Policy, std::invocable F>
void agree_around(Policy& policy, F&& f) {
    if constexpr (spread<Model>::has_others) {
        guarded(policy, std::forward<F>(f));
    } else {
        f();
    }
}

}  // namespace latpar::inline v0::detail

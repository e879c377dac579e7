// SPDX-License-Identifier: Apache-2.0
// Ranks that do the same outside of a model whose layers they share.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/detail/mesh_agreement.hpp>
#include <latpar/denoise/detail/spread.hpp>
#include <latpar/kernel/host.hpp>

#include <string_view>
#include <utility>
#include <vector>

namespace latpar::inline v0 {

/// A denoiser whose ranks all make every call with the same latent, because a layer policy spreads
/// the work inside the model (`layer::usp` in its attention).
///
/// What a rank's model throws outside of its attention would leave the others waiting in theirs:
/// here it reaches them. Moves nothing itself. It lets a loop agree with these ranks too: on what
/// is sampled, on when to stop, on errors. Wrap it around everything but the loop.
///
/// Ranks: all ranks of all communicators construct it and make every call.
/// Errors: usage_error on every rank if what is sampled differs; what the model throws aborts the
/// communicators with its message.
template <denoiser Model, communicator Comm, kernel_set Kernels = kernel::host>
class lockstep {
public:
    /// `ranks`: the communicators that the layer policies use, such as those along `ring` and
    /// `ulysses`, in one order on all ranks. `whole`: the extents of the latent.
    /// `result_everywhere`: whether all of them, or those of rank 0 alone, collect the finished
    /// latent.
    lockstep(Model model, std::vector<Comm*> ranks, const extents3& whole,
             bool result_everywhere = true, Kernels kernels = {})
        : model_(std::move(model)),
          ranks_(std::move(ranks)),
          whole_(whole),
          result_everywhere_(result_everywhere),
          kernels_(std::move(kernels)) {}

    [[nodiscard]] Model& model() noexcept { return model_; }
    [[nodiscard]] placement placement_at(index_t step) const {
        return detail::placement_of(model_, whole_, step);
    }

    void operator()(const_latent_view z, const step_info& info, latent_view prediction,
                    stream_ref stream) {
        guarded(*this, [&] { model_(z, info, prediction, stream); });
    }

    /// See distributed_denoiser.
    void agree(const latent_problem& problem, std::string_view text) {
        detail::agree_around<Model>(*this, [&] {
            const std::span<Comm* const> axes(ranks_);
            detail::agree_no_error_on_mesh(axes, complaint_about(problem));
            detail::agree_on_mesh(axes, "the loop", text);
            inner().agree(problem, text);
        });
    }
    /// See distributed_denoiser.
    void relayout(index_t step, latent_state& state, stream_ref stream) {
        guarded(*this, [&] { inner().relayout(step, state, stream); });
    }
    /// See distributed_denoiser.
    void collect(index_t step, latent_state& state, latent_view out, stream_ref stream) {
        if (!result_everywhere_ && !is_first()) return;
        guarded(*this, [&] { inner().collect(step, state, out, kernels_, stream); });
    }
    [[nodiscard]] bool any_rank(bool flag) {
        bool any = inner().any_rank(flag);
        for (Comm* comm : ranks_) any = latpar::any_rank(*comm, any);
        return any;
    }
    /// See distributed_denoiser. Reaches the ranks of the model too, where it has some.
    void abort(std::string_view reason) {
        for (Comm* comm : ranks_) comm->abort(reason);
        inner().abort(reason);
    }

private:
    [[nodiscard]] bool is_first() const {
        for (const Comm* comm : ranks_) {
            if (comm->rank() != 0) return false;
        }
        return true;
    }
    [[nodiscard]] detail::spread<Model> inner() { return {model_, whole_}; }
    [[nodiscard]] std::optional<std::string> complaint_about(const latent_problem& problem) const {
        if (problem.extents == whole_) return std::nullopt;
        return detail::concat("the loop samples ", box_of(problem.extents),
                              ", lockstep was made for ", box_of(whole_),
                              "; pass it the extents of the latent");
    }

    Model model_;
    std::vector<Comm*> ranks_;
    extents3 whole_;
    bool result_everywhere_;
    Kernels kernels_;
};

}  // namespace latpar::inline v0

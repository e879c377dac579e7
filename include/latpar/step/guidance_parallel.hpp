// SPDX-License-Identifier: Apache-2.0
// Guidance whose branches are called by different ranks.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/detail/memory_complaint.hpp>
#include <latpar/denoise/detail/combine_branches.hpp>
#include <latpar/denoise/detail/spread.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/step/guidance_parallel_plan.hpp>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace latpar::inline v0 {

/// A denoiser whose ranks each call the model for some branches of a guidance rule, exchange the
/// predictions and combine them, all in the same order.
///
/// The result is to the bit that of `guided` on one rank. It may wrap any denoiser, a
/// `latent_parallel` whose ranks lie on another axis of the mesh for example, or be wrapped by one:
/// then its plan is told what is predicted here (`guidance_parallel_options::predicted`).
///
/// Ranks: all ranks of the communicator construct it and make every call, in the same order, with
/// the same z. Stream: ordered on it; the host waits for messages.
/// Memory: `plan.workspace_bytes()` from `source`, taken by the constructor.
/// Errors: usage_error on every rank, before payload moves, if the ranks' plans differ or a loop
/// does not fit the plan. What the model throws, and a call that does not fit, aborts the
/// communicator with its message, which is of no use afterwards.
template <denoiser Model, communicator Comm, kernel_set Kernels = kernel::host>
class guidance_parallel {
public:
    guidance_parallel(Model model, Comm& comm, guidance_parallel_plan plan, Kernels kernels = {},
                      memory_source source = {})
        : model_(std::move(model)),
          comm_(&comm),
          plan_(std::move(plan)),
          kernels_(std::move(kernels)) {
        agree_on(comm, "the guidance plan", plan_.fingerprint());
        agree_no_error(comm, complaint_about(source));
        guarded(comm, [&] {
            const auto branches = static_cast<index_t>(plan_.options.rule.branches().size());
            const index_t each = plan_.workspace_bytes() / branches;
            const dtype type = plan_.rounds() ? plan_.options.wire_prediction : plan_.problem.type;
            for (index_t k = 0; k < branches; ++k) branches_.emplace_back(each, type, source);
        });
    }

    [[nodiscard]] const guidance_parallel_plan& plan() const noexcept { return plan_; }
    [[nodiscard]] Model& model() noexcept { return model_; }
    [[nodiscard]] placement placement_at(index_t step) const {
        return detail::placement_of(model_, plan_.problem.extents, step);
    }

    void operator()(const_latent_view z, const step_info& info, latent_view prediction,
                    stream_ref stream) {
        guarded(*this, [&] {
            const guidance_parallel_step& step = plan_.step_at(check_call(info, prediction));
            predictions_.assign(branches_.size(), {});
            for (const int k : step.calls[rank()]) call_branch(k, z, info, prediction, stream);
            if (step.shares()) share(step, prediction, stream);
            if (prediction.elements() == 0) return;
            detail::combine_branches(kernels_, plan_.options.rule, info.samples, predictions_,
                                     prediction, stream);
        });
    }

    /// See distributed_denoiser.
    void agree(const latent_problem& problem, std::string_view text) {
        detail::agree_around<Model>(*this, [&] {
            agree_no_error(*comm_, complaint_about(problem));
            agree_on(*comm_, "the loop", text);
            inner().agree(problem, text);
        });
    }
    /// See distributed_denoiser.
    void relayout(index_t step, latent_state& state, stream_ref stream) {
        guarded(*this, [&] { inner().relayout(step, state, stream); });
    }
    /// See distributed_denoiser. Each rank's model has the whole result.
    void collect(index_t step, latent_state& state, latent_view out, stream_ref stream) {
        if (comm_->rank() > 0 && !plan_.options.result_everywhere) return;
        guarded(*this, [&] { inner().collect(step, state, out, kernels_, stream); });
    }
    [[nodiscard]] bool any_rank(bool flag) {
        return latpar::any_rank(*comm_, inner().any_rank(flag));
    }
    /// See distributed_denoiser. Reaches the ranks of the model too, where it has some.
    void abort(std::string_view reason) {
        comm_->abort(reason);
        inner().abort(reason);
    }

private:
    [[nodiscard]] std::size_t rank() const noexcept {
        return static_cast<std::size_t>(comm_->rank());
    }
    [[nodiscard]] detail::spread<Model> inner() { return {model_, plan_.problem.extents}; }

    [[nodiscard]] std::optional<std::string> complaint_about(const latent_problem& problem) const {
        if (problem == plan_.problem) return std::nullopt;
        return detail::concat("the loop samples ", box_of(problem.extents), " in ", problem.steps,
                              " steps, guidance was planned for ", box_of(plan_.problem.extents),
                              " in ", plan_.problem.steps,
                              " steps, or for another batch, type or history; plan with "
                              "latent_problem::of the loop's extents and schedule");
    }
    [[nodiscard]] std::optional<std::string> complaint_about(const memory_source& source) const {
        if (plan_.ranks != comm_->size()) {
            return detail::concat("guidance was planned for ", plan_.ranks,
                                  " ranks, the communicator has ", comm_->size(),
                                  "; plan for its size");
        }
        return detail::memory_complaint(*comm_, kernels_, source);
    }

    /// The step of a call that fits the plan.
    [[nodiscard]] index_t check_call(const step_info& info, const latent_view& prediction) const {
        detail::require(!info.samples.empty() && std::ssize(info.samples) == plan_.problem.batch,
                        "step_info names ", info.samples.size(), " samples of a batch of ",
                        plan_.problem.batch, "; give one for each");
        const index_t i = info.samples.front().step;
        for (const sample_info& sample : info.samples) {
            detail::require(sample.step == i, "a batch mixes the denoising steps ", i, " and ",
                            sample.step, "; give guidance_parallel one step a call");
        }
        detail::require(i >= 0 && i < plan_.problem.steps, "denoising step ", i,
                        " is not in the plan, which has ", plan_.problem.steps);
        const box where = plan_.predicted_at(i);
        detail::require(
            prediction.extents == std::array{plan_.problem.batch, plan_.problem.prediction_channels,
                                             where.extent[0], where.extent[1], where.extent[2]},
            "at step ", i, " a prediction over ", box_of(spatial_extents(prediction)),
            " was asked for, the plan has ", where,
            "; plan guidance with what is predicted here (guidance_parallel_options::predicted)");
        return i;
    }

    /// Memory for the prediction of branch k, as it travels.
    [[nodiscard]] latent_view place(int k, const latent_view& like) {
        latent_block& block = branches_[static_cast<std::size_t>(k)];
        block.place(like.extents[0], like.extents[1], box_of(spatial_extents(like)));
        predictions_[static_cast<std::size_t>(k)] = block.view();
        return block.view();
    }

    /// Predicts branch k; in a narrow type by way of `scratch`, which holds the sum later.
    void call_branch(int k, const const_latent_view& z, const step_info& info,
                     const latent_view& scratch, stream_ref stream) {
        const latent_view kept = place(k, scratch);
        const guidance_branch branch = plan_.options.rule.branches()[static_cast<std::size_t>(k)];
        const latent_view out = plan_.rounds() ? scratch : kept;
        samples_.call(model_, z, info, branch, out, stream);
        if (plan_.rounds()) kernels_.copy(out, kept, stream);
    }

    void share(const guidance_parallel_step& step, const latent_view& like, stream_ref stream) {
        sends_.clear();
        recvs_.clear();
        const auto ranks = static_cast<std::size_t>(comm_->size());
        for (std::size_t owner = 0; owner < ranks; ++owner) {
            for (const int k : step.calls[owner]) {
                const latent_view data = owner == rank()
                                             ? branches_[static_cast<std::size_t>(k)].view()
                                             : place(k, like);
                if (data.elements() == 0) continue;
                if (owner != rank()) {
                    recvs_.push_back({data.data, data.elements(), data.type,
                                      static_cast<int>(owner), data.space});
                    continue;
                }
                for (std::size_t to = 0; to < ranks; ++to) {
                    if (to == owner) continue;
                    sends_.push_back(
                        {data.data, data.elements(), data.type, static_cast<int>(to), data.space});
                }
            }
        }
        auto request = comm_->start_exchange(sends_, recvs_, stream);
        wait_on_host(request);
    }

    Model model_;
    Comm* comm_;
    guidance_parallel_plan plan_;
    Kernels kernels_;
    std::vector<latent_block> branches_;
    // Reused from call to call, so that the steady state allocates nothing.
    std::vector<const_latent_view> predictions_;
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
    detail::branch_call samples_;
};

}  // namespace latpar::inline v0

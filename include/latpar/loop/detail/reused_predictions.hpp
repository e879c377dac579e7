// SPDX-License-Identifier: Apache-2.0
// The predictions with which a loop steps on before it has new ones.
#pragma once

#include <latpar/core/latent_block.hpp>
#include <latpar/kernel/kernel_set.hpp>
#include <latpar/schedule/scheduler.hpp>

#include <array>
#include <utility>
#include <vector>

namespace latpar::inline v0::detail {

/// None, the last one, or the last two predictions; the later ones last.
class reused_predictions {
public:
    reused_predictions() = default;
    /// `blocks` are placed already.
    explicit reused_predictions(std::vector<latent_block> blocks) : blocks_(std::move(blocks)) {}

    [[nodiscard]] bool is_kept() const noexcept { return !blocks_.empty(); }
    [[nodiscard]] latent_view view(int slot) {
        return blocks_[static_cast<std::size_t>(slot)].view();
    }
    void forget() noexcept { oldest_ = newest_ = none; }

    /// Keeps the prediction of a step as the latest.
    template <kernel_set Kernels>
    void remember(index_t step, const_latent_view prediction, const Kernels& kernels,
                  stream_ref stream) {
        if (blocks_.empty()) return;
        if (blocks_.size() == 2) std::swap(blocks_[0], blocks_[1]);
        put(static_cast<int>(blocks_.size()) - 1, prediction, kernels, stream);
        oldest_ = newest_;
        newest_ = step;
    }

    /// Fills a slot by itself; set_steps says of which steps the slots are.
    template <kernel_set Kernels>
    void put(int slot, const_latent_view prediction, const Kernels& kernels, stream_ref stream) {
        if (prediction.elements() > 0) kernels.copy(prediction, view(slot), stream);
    }
    /// The slots hold the predictions of step `oldest` and those that follow.
    void set_steps(index_t oldest) noexcept {
        oldest_ = oldest;
        newest_ = oldest + static_cast<index_t>(blocks_.size()) - 1;
    }

    /// What to step with at step i. With none kept that is `own`, the last of this rank, as it is;
    /// with two `own` is overwritten by the line through them, at the timestep of step i.
    template <class Schedule, kernel_set Kernels>
    [[nodiscard]] const_latent_view at(index_t i, const Schedule& schedule, latent_view own,
                                       const Kernels& kernels, stream_ref stream) {
        if (blocks_.empty() || own.elements() == 0) return own;
        if (blocks_.size() == 1) return view(0);
        double slope = 0;
        if (oldest_ != none) {
            const auto time = [&](index_t k) {
                return schedule.timesteps()[static_cast<std::size_t>(k)];
            };
            // Schedules that round their timesteps may have the same one twice.
            const double apart = time(newest_) - time(oldest_);
            slope = apart == 0 ? 0 : (time(i) - time(newest_)) / apart;
        }
        const std::array<const_latent_view, 2> inputs{view(0), view(1)};
        const std::array<float, 2> weights{static_cast<float>(-slope),
                                           static_cast<float>(1 + slope)};
        kernels.linear_combination(inputs, weights, std::array{own}, stream);
        return own;
    }

private:
    static constexpr index_t none = -1;

    std::vector<latent_block> blocks_;
    index_t oldest_ = none;
    index_t newest_ = none;
};

}  // namespace latpar::inline v0::detail

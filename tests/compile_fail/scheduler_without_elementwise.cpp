// SPDX-License-Identifier: Apache-2.0
// A scheduler that does not say whether it is elementwise is none: a policy could not tell whether
// it may cut the latent.
// refused: scheduler
// refused: elementwise
#include <latpar/schedule/scheduler.hpp>

#include <array>

using namespace latpar;

struct still {
#if defined(LATPAR_ACCEPTED)
    static constexpr bool elementwise = true;
#endif
    static constexpr index_t model_calls_per_step = 1;
    std::array<double, 2> levels{1.0, 0.0};

    std::string_view name() const {
        return "still";
    }
    index_t steps() const {
        return 1;
    }
    std::span<const double> timesteps() const {
        return {levels.data(), 1};
    }
    std::span<const double> sigmas() const {
        return levels;
    }
    index_t history_size() const {
        return 0;
    }
    bool history_live(index_t, index_t) const {
        return false;
    }
    bool draws_noise(index_t) const {
        return false;
    }
    template <kernel_set Kernels>
    void step(index_t, const step_state&, const Kernels&, stream_ref) const {}
};

template <scheduler Scheduler>
index_t steps_of(const Scheduler& schedule) {
    return schedule.steps();
}

index_t steps() {
    return steps_of(still{});
}

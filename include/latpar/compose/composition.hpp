// SPDX-License-Identifier: Apache-2.0
// Policies that nest on a mesh, made from one plan.
#pragma once

#include <latpar/comm/mesh.hpp>
#include <latpar/compose/composition_plan.hpp>
#include <latpar/loop/para_step.hpp>
#include <latpar/loop/serial.hpp>
#include <latpar/step/guidance_parallel.hpp>
#include <latpar/step/latent_parallel.hpp>
#include <latpar/step/lockstep.hpp>

#include <utility>
#include <variant>

namespace latpar::inline v0 {

/// para_step(guidance_parallel(latent_parallel(model))) on the axes of a mesh; without an axis
/// `step`, serial around the rest.
///
/// Saves writing the nest out; what it holds are the policies themselves. The model is called with
/// one branch of guidance at a time. Where the mesh has axes `ulysses` or `ring`, the model's
/// attention talks along them itself, and `lockstep` around the nest keeps its ranks together.
///
/// Ranks: all ranks of the mesh construct it and make every call.
/// Memory: `plan.workspace_bytes(rank)` from `source`, taken by the constructor.
/// Errors: those of the policies.
template <denoiser Model, communicator Comm, scheduler Schedule, kernel_set Kernels = kernel::host>
class composition {
public:
    using branch_policy = guidance_parallel<latent_parallel<Model, Comm, Kernels>, Comm, Kernels>;
    using step_policy = lockstep<branch_policy, Comm, Kernels>;

    composition(Model model, mesh<Comm>& ranks, Schedule schedule, const composition_plan& plan,
                Kernels kernels = {}, memory_source source = {})
        : policy_(
              branch_policy(
                  latent_parallel<Model, Comm, Kernels>(std::move(model), ranks.axis("latent"),
                                                        plan.latent, kernels, source),
                  ranks.axis("guidance"), plan.guidance_of(place(ranks, plan)), kernels, source),
              {&ranks.axis("ring"), &ranks.axis("ulysses")}, plan.problem.extents,
              plan.options.result_everywhere, kernels),
          loop_(make_loop(ranks, std::move(schedule), plan, kernels, source)) {}
    composition(const composition&) = delete;  // the loop points to the policy beside it
    composition& operator=(const composition&) = delete;

    [[nodiscard]] Model& model() noexcept { return policy_.model().model().model(); }
    [[nodiscard]] step_policy& policy() noexcept { return policy_; }

    /// Begins with noise, or with a whole latent. See `loop::serial`.
    template <class Start>
    void start(const Start& from, stream_ref stream = {}) {
        std::visit([&](auto& loop) { loop.start(from, stream); }, loop_);
    }
    /// See `loop::serial` and `loop::para_step`.
    template <noise_source Noise, class OnStep>
    bool run(const Noise& noise, OnStep&& on_step, stream_ref stream = {}) {
        return std::visit([&](auto& loop) { return loop.run(noise, on_step, stream); }, loop_);
    }
    template <noise_source Noise>
    void run(const Noise& noise, stream_ref stream = {}) {
        std::visit([&](auto& loop) { loop.run(noise, stream); }, loop_);
    }
    void collect(latent_view out, stream_ref stream = {}) {
        std::visit([&](auto& loop) { loop.collect(out, stream); }, loop_);
    }
    [[nodiscard]] index_t steps() const {
        return std::visit([](const auto& loop) { return loop.steps(); }, loop_);
    }

private:
    using serial_loop = loop::serial<step_policy, Schedule, Kernels>;
    using round_loop = loop::para_step<step_policy, Comm, Schedule, Kernels>;

    static int place(const mesh<Comm>& ranks, const composition_plan& plan) {
        return plan.ranks == 1 ? 0 : ranks.rank();
    }

    std::variant<serial_loop, round_loop> make_loop(mesh<Comm>& ranks, Schedule schedule,
                                                    const composition_plan& plan, Kernels kernels,
                                                    memory_source source) {
        const latent_problem& p = plan.problem;
        if (plan.in_rounds()) {
            return round_loop(policy_, ranks.axis("step"), std::move(schedule),
                              plan.step_of(place(ranks, plan)), kernels, source);
        }
        return serial_loop(policy_, std::move(schedule),
                           {p.batch, p.channels, p.extents[0], p.extents[1], p.extents[2]}, kernels,
                           p.type, source);
    }

    step_policy policy_;
    std::variant<serial_loop, round_loop> loop_;
};

}  // namespace latpar::inline v0

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

#include <array>
#include <string_view>
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

    /// The mesh must outlive it; so must what `model` refers to. It can neither be copied nor
    /// moved.
    composition(Model model, mesh<Comm>& ranks, Schedule schedule, composition_plan plan,
                Kernels kernels = {}, memory_source source = {})
        : plan_(agreed(ranks, std::move(plan))),
          policy_(branch_policy(
                      latent_parallel<Model, Comm, Kernels>(std::move(model), ranks.axis("latent"),
                                                            plan_.latent, kernels, source),
                      ranks.axis("guidance"), plan_.guidance_of(place(ranks)), kernels, source),
                  {&ranks.axis("ring"), &ranks.axis("ulysses")}, plan_.problem.extents,
                  plan_.options.result_everywhere, kernels) {
        const latent_problem& p = plan_.problem;
        if (plan_.in_rounds()) {
            loop_.template emplace<round_loop>(policy_, ranks.axis("step"), std::move(schedule),
                                               plan_.step_of(place(ranks)), kernels, source);
        } else {
            loop_.template emplace<serial_loop>(
                policy_, std::move(schedule),
                std::array{p.batch, p.channels, p.extents[0], p.extents[1], p.extents[2]}, kernels,
                p.type, source);
        }
    }
    composition(const composition&) = delete;  // the loop points to the policy beside it
    composition& operator=(const composition&) = delete;

    [[nodiscard]] const composition_plan& plan() const noexcept { return plan_; }
    [[nodiscard]] Model& model() noexcept { return policy_.model().model().model(); }
    [[nodiscard]] step_policy& policy() noexcept { return policy_; }

    /// Begins with noise, or with a whole latent. See `loop::serial`.
    template <class Start>
    void start(const Start& from, stream_ref stream = {}) {
        visit([&](auto& loop) { loop.start(from, stream); });
    }
    /// See `loop::serial` and `loop::para_step`.
    template <noise_source Noise, class OnStep>
    bool run(const Noise& noise, OnStep&& on_step, stream_ref stream = {}) {
        return visit([&](auto& loop) { return loop.run(noise, on_step, stream); });
    }
    template <noise_source Noise>
    void run(const Noise& noise, stream_ref stream = {}) {
        visit([&](auto& loop) { loop.run(noise, stream); });
    }
    void collect(latent_view out, stream_ref stream = {}) {
        visit([&](auto& loop) { loop.collect(out, stream); });
    }

    /// The loop as a stepper, for an engine that owns it; what is asked of the model is the guided
    /// prediction, which policy() makes.
    template <noise_source Noise>
    [[nodiscard]] loop::request next_request(const Noise& noise, stream_ref stream = {}) {
        return visit([&](auto& loop) { return loop.next_request(noise, stream); });
    }
    void supply(const_latent_view prediction, stream_ref stream = {}) {
        visit([&](auto& loop) { loop.supply(prediction, stream); });
    }
    template <noise_source Noise>
    void advance(const Noise& noise, stream_ref stream = {}) {
        visit([&](auto& loop) { loop.advance(noise, stream); });
    }
    void abort(std::string_view reason) {
        visit([&](auto& loop) { loop.abort(reason); });
    }
    [[nodiscard]] index_t steps() const noexcept { return plan_.problem.steps; }
    [[nodiscard]] index_t step() {
        return visit([](auto& loop) { return loop.step(); });
    }
    [[nodiscard]] bool done() {
        return visit([](auto& loop) { return loop.done(); });
    }

private:
    using serial_loop = loop::serial<step_policy, Schedule, Kernels>;
    using round_loop = loop::para_step<step_policy, Comm, Schedule, Kernels>;

    /// The plan, if it is that of every rank and fits the mesh.
    static composition_plan agreed(mesh<Comm>& ranks, composition_plan plan) {
        // First, so that what follows is refused by all or by none.
        ranks.agree_on("the composition plan", plan.fingerprint());
        const mesh_shape shape = plan.ranks == 1 ? mesh_shape{} : plan.shape;
        for (const std::string_view axis : mesh_axes) {
            detail::require(ranks.degree(axis) == shape.degree(axis), "the mesh is ",
                            to_string(ranks.shape()), ", the nest was planned for ",
                            to_string(shape), "; plan for the shape of the mesh");
        }
        return plan;
    }
    [[nodiscard]] int place(const mesh<Comm>& ranks) const {
        return plan_.ranks == 1 ? 0 : ranks.rank();
    }
    template <class F>
    decltype(auto) visit(F&& f) {
        if (auto* rounds = std::get_if<round_loop>(&loop_)) return f(*rounds);
        return f(std::get<serial_loop>(loop_));
    }

    composition_plan plan_;
    step_policy policy_;
    std::variant<std::monostate, serial_loop, round_loop> loop_;
};

}  // namespace latpar::inline v0

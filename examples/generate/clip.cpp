// SPDX-License-Identifier: Apache-2.0
// One rank's share of a clip.
#include <generate/clip.hpp>

namespace generate {
namespace {

using latpar::index_t;

/// `model_calls` are those of this rank; ranks that share the tokens of a call count it once.
void count_calls(latpar::any_communicator& world, const run_plan& plan,
                 const latpar::mesh<communicator>& mesh, index_t model_calls, report& figures) {
    if (mesh.coordinate("ring") + mesh.coordinate("ulysses") > 0) model_calls = 0;
    const index_t predictions =
        mesh.coordinate("guidance") == 0 ? model_calls / plan.calls_in_prediction() : index_t{0};
    call_counts calls;
    calls.total = sum(from_all(world, predictions));
    calls.critical_path = plan.critical_path_calls();
    calls.model_total = sum(from_all(world, model_calls));
    calls.model_critical_path = plan.critical_path_model_calls();
    calls.model_serial = plan.serial_model_calls();
    require_as_planned("denoiser calls", calls.total, plan.denoiser_calls());
    require_as_planned("model calls", calls.model_total, plan.model_calls());
    figures.calls = calls;
}

/// What the plan sends along each axis.
std::vector<axis_bytes> planned_bytes(const run_plan& plan) {
    std::vector<axis_bytes> out;
    for (const char* axis : {"step", "guidance", "latent", "ring", "ulysses"}) {
        out.push_back({axis, plan.bytes(axis), 0});
    }
    return out;
}

}  // namespace

void describe_clip(latpar::any_communicator& world, latpar::mesh<communicator>& mesh, const job& j,
                   const run_plan& plan, const clip_share& share, report& figures) {
    describe_job(j, figures);
    figures.wall_seconds = share.seconds;
    figures.policy = plan.policy();
    figures.mesh = latpar::to_string(plan.nest.shape);
    figures.ranks = world.size();
    figures.latent = {j.extents[1], j.extents[2], j.extents[3], j.extents[4]};
    if (plan.steps_at_once() > 1) {
        const latpar::loop::para_step_options& step = j.options.para_step;
        figures.rounds = {plan.steps_at_once(), step.warm_up,
                          std::string(latpar::loop::name_of(step.reuse)),
                          std::string(latpar::loop::name_of(step.history))};
    }
    figures.critical_fraction = plan.nest.latent.critical_fraction();
    count_calls(world, plan, mesh, share.model_calls, figures);
    count_bytes(world, mesh, planned_bytes(plan), figures);
    figures.bytes_paper = plan.paper_bytes();
    figures.workspace_bytes = from_all(world, plan.workspace_bytes(world.rank()));
}

}  // namespace generate

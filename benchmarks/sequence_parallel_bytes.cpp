// SPDX-License-Identifier: Apache-2.0
// What one guided prediction of Wan 2.1 1.3B sends under each policy, from the plans.
#include <latpar/compose/composition_plan.hpp>
#include <latpar/schedule/by_name.hpp>

#include <iomanip>
#include <iostream>

using namespace latpar;

namespace {

constexpr double mebibyte = 1024.0 * 1024.0;
constexpr index_t steps = 50;

composition_plan plan_of(const mesh_shape& shape) {
    const std::array<index_t, 5> extents{1, 16, 21, 60, 104};  // 81 frames of 480x832 pixels
    const auto schedule = schedule::by_name("unipc_flow", steps);
    composition_options options;
    options.guidance.rule = guidance_rule::classifier_free(5.0);
    options.result_everywhere = false;
    // 12 heads of 128, 30 layers; activations travel in bf16, as the model computes.
    options.transformer = layer::transformer_shape{{12, 12, 128, dtype::bf16}, 30, {1, 2, 2}, 64};
    return plan_composition(latent_problem::of(extents, schedule), shape, options);
}

/// Bytes of one attention against the fewest that the layout allows.
double ratio_of(const mesh_shape& shape) {
    const auto forward =
        layer::plan_forward({{12, 12, 128, dtype::bf16}, 30, {1, 2, 2}, 64}, {21, 60, 104},
                            shape.degree("ulysses"), shape.degree("ring"));
    const index_t smallest = forward.attention.smallest_bytes();
    return smallest == 0
               ? 1
               : static_cast<double>(forward.attention.bytes()) / static_cast<double>(smallest);
}

}  // namespace

int main() {
    std::cout
        << "Wan 2.1 1.3B, latent 16x21x60x104, 32760 tokens, 50 steps of unipc_flow, both\n"
           "branches of guidance; MiB a step, all ranks together and by the busiest rank\n\n"
        << "| mesh | MiB a step | busiest rank sends | attention over its least | calls on the "
           "critical path |\n|---|---|---|---|---|\n"
        << std::fixed << std::setprecision(2);
    for (const char* text : {"ulysses=2",
                             "ring=2",
                             "guidance=2",
                             "latent=2",
                             "step=2",
                             "ulysses=4",
                             "ring=4",
                             "ring=2,ulysses=2",
                             "guidance=2,ulysses=2",
                             "guidance=2,latent=2",
                             "latent=4",
                             "step=4",
                             "ulysses=8",
                             "ring=8",
                             "ring=2,ulysses=4",
                             "guidance=2,ulysses=4",
                             "guidance=2,latent=4",
                             "latent=8",
                             "step=8",
                             "step=2,guidance=2,latent=2"}) {
        const auto shape = mesh_shape::parse(text);
        const auto plan = plan_of(shape);
        index_t busiest = 0;
        for (int rank = 0; rank < plan.ranks; ++rank) {
            busiest = std::max(busiest, plan.bytes_sent_by(rank));
        }
        std::cout << "| `" << shape << "` | "
                  << static_cast<double>(plan.bytes()) / mebibyte / steps << " | "
                  << static_cast<double>(busiest) / mebibyte / steps << " | ";
        if (shape.degree("ulysses") * shape.degree("ring") > 1) {
            std::cout << ratio_of(shape);
        } else {
            std::cout << "-";
        }
        std::cout << " | " << plan.critical_path_evaluations() << " of "
                  << plan.serial_evaluations() << " |\n";
    }
}

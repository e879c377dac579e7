// SPDX-License-Identifier: Apache-2.0
// The blocks of frames that DualParal has under way: their memory, and where a file goes on.
#include <latpar/loop/detail/block_queue.hpp>

#include <charconv>
#include <system_error>

namespace latpar::inline v0::detail {

void block_queue::take(const loop::dual_paral_plan& plan, memory_source source) {
    const index_t bytes = plan.window_latents() * plan.frame_bytes();
    for (index_t k = 0; k < plan.blocks_held(); ++k) {
        latent_state& state = states_.emplace_back();
        state.z = latent_block(bytes, plan.problem.type, source);
        for (index_t h = 0; h < plan.problem.history_size(); ++h) {
            state.history.emplace_back(bytes, plan.problem.type, source);
        }
    }
}

void block_queue::place(const loop::dual_paral_plan& plan, index_t block) {
    const box own = plan.frames_of(block);
    latent_state& state = of(block);
    state.z.place(1, plan.problem.channels, own);
    for (latent_block& h : state.history) h.place(1, plan.problem.channels, own);
}

index_t block_queue::iteration_of(const safetensors_file& file, const loop::dual_paral_plan& plan,
                                  const std::string& video) {
    const auto saved = file.metadata().find("dual_paral");
    const auto when = file.metadata().find("dual_paral.iteration");
    const std::string path = file.path().string();
    require<io_error>(saved != file.metadata().end() && when != file.metadata().end(), path,
                      " holds no DualParal video; save one with dual_paral::save");
    require(saved->second == video, path,
            " was saved by a run with another plan, schedule or guidance; restore it with the same "
            "(the number of stages may differ)");
    const std::string& text = when->second;
    index_t iteration = -1;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), iteration);
    const index_t most =
        plan.iterations() < 0 ? plan.most_latents / plan.options.block_latents : plan.iterations();
    require<io_error>(problem == std::errc{} && end == text.data() + text.size() &&
                          iteration >= 0 && iteration <= most,
                      path, ": the iteration '", text, "' is none of this video's");
    return iteration;
}

}  // namespace latpar::inline v0::detail

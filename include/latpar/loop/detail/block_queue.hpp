// SPDX-License-Identifier: Apache-2.0
// The blocks of frames that DualParal has under way.
#pragma once

#include <latpar/denoise/distributed_denoiser.hpp>
#include <latpar/io/safetensors.hpp>
#include <latpar/loop/dual_paral_plan.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace latpar::inline v0::detail {

/// The latents of the blocks under way with their history, and the last that is done, which the
/// next sees: block b in place b mod `plan.blocks_held()`. Of a pipeline's first stage.
class block_queue {
public:
    void take(const loop::dual_paral_plan& plan, memory_source source);

    [[nodiscard]] latent_state& of(index_t block) noexcept {
        return states_[static_cast<std::size_t>(block) % states_.size()];
    }
    [[nodiscard]] const latent_state& of(index_t block) const noexcept {
        return states_[static_cast<std::size_t>(block) % states_.size()];
    }
    /// Gives a block its place; its elements are then undefined.
    void place(const loop::dual_paral_plan& plan, index_t block);

    /// Adds what a video needs that goes on at an iteration to a file, each tensor as
    /// `to_host(view)` gives it. `video` tells it from others.
    template <class ToHost>
    void save(safetensors_writer& file, const loop::dual_paral_plan& plan, index_t iteration,
              const std::string& video, ToHost& to_host) const {
        file.set_metadata("dual_paral", video);
        file.set_metadata("dual_paral.iteration", std::to_string(iteration));
        for (index_t block = plan.first_kept(iteration); block < plan.next_block(iteration);
             ++block) {
            const latent_state& state = of(block);
            file.add(name_of(block), to_host(state.z.view()));
            for (std::size_t k = 0; k < state.history.size(); ++k) {
                file.add(name_of(block, k), to_host(state.history[k].view()));
            }
        }
    }
    /// Gives the iteration of such a file, and takes its tensors: `put(bytes, view)` copies one.
    ///
    /// Errors: usage_error for another video; io_error for a file that does not hold what it should.
    template <class Put>
    [[nodiscard]] index_t load(const safetensors_file& file, const loop::dual_paral_plan& plan,
                               const std::string& video, Put& put) {
        const index_t iteration = iteration_of(file, plan, video);
        for (index_t block = plan.first_kept(iteration); block < plan.next_block(iteration);
             ++block) {
            place(plan, block);
            latent_state& state = of(block);
            load(file, name_of(block), state.z, put);
            for (std::size_t k = 0; k < state.history.size(); ++k) {
                load(file, name_of(block, k), state.history[k], put);
            }
        }
        return iteration;
    }

private:
    static std::string name_of(index_t block) { return concat("block.", block, ".z"); }
    static std::string name_of(index_t block, std::size_t history) {
        return concat("block.", block, ".history.", history);
    }
    /// Errors: as load.
    [[nodiscard]] static index_t iteration_of(const safetensors_file& file,
                                              const loop::dual_paral_plan& plan,
                                              const std::string& video);

    template <class Put>
    static void load(const safetensors_file& file, const std::string& name, latent_block& to,
                     Put& put) {
        const safetensors_entry& from = file.at(name);
        const latent_view view = to.view();
        require<io_error>(
            from.type() == view.type && std::equal(from.shape.begin(), from.shape.end(),
                                                   view.extents.begin(), view.extents.end()),
            file.path().string(), ": '", name, "' is not the ", box_of(spatial_extents(view)),
            " of ", latpar::name_of(view.type), " that the block needs");
        put(from.data, view);
    }

    std::vector<latent_state> states_;
};

}  // namespace latpar::inline v0::detail

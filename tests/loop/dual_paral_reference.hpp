// SPDX-License-Identifier: Apache-2.0
// The recorded videos of DualParal, and how they are made again.
#pragma once

#include <latpar/comm/metered.hpp>
#include <latpar/io/safetensors.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/schedule/by_name.hpp>

#include <support/recorded.hpp>
#include <support/reference.hpp>
#include <wan/transformer.hpp>

#include <memory>
#include <string>
#include <vector>

struct recorded_video {
    std::string name;
    latpar::index_t steps;
    latpar::index_t block_latents;
    latpar::index_t cat_latents;
    latpar::index_t noise_latents;  ///< frames of noise, those of the first context left out
    std::string scheduler;
    latpar::index_t height;
    latpar::index_t width;
};

/// What one rank saw.
struct video_report {
    std::vector<float> video;  ///< [C, frames, H, W] by frames: [frames][C, H, W]; on rank 0
    latpar::index_t sent_bytes = 0;
    latpar::index_t taken_bytes = 0;
    latpar::index_t late_allocations = 0;
};

class recorded_dual_paral {
public:
    recorded_dual_paral()
        : file_(latpar::safetensors_file::open(reference_file("dual_paral.safetensors"))),
          weights_(wan::load_weights(reference_file("wan_tiny.safetensors"))) {}

    [[nodiscard]] static std::vector<recorded_video> videos() {
        return {{"euler", 10, 4, 2, 16, "euler_flow", 8, 12},
                {"unipc", 8, 4, 4, 24, "unipc_flow", 8, 8},
                {"nocat", 8, 4, 0, 12, "euler_flow", 8, 8}};
    }

    [[nodiscard]] wan::transformer<> model() const {
        wan::transformer<> out(
            weights_, std::make_shared<wan::executor>(wan::executor_options{.threads = 1}));
        out.set_text(latpar::guidance_branch::conditional, latpar::to_float32(file_.at("text")));
        out.set_text(latpar::guidance_branch::unconditional,
                     latpar::to_float32(file_.at("negative_text")));
        return out;
    }

    [[nodiscard]] latpar::loop::dual_paral_plan plan(const recorded_video& c, int stages,
                                                     int guidance_ranks = 1) const {
        const std::array<latpar::index_t, 5> window{1, 16, c.block_latents + c.cat_latents,
                                                    c.height, c.width};
        latpar::loop::dual_paral_options options;
        options.block_latents = c.block_latents;
        options.cat_latents = c.cat_latents;
        options.total_latents = c.noise_latents + c.cat_latents;
        const auto one = model();
        return plan_dual_paral(
            latpar::latent_problem::of(window, schedule(c)), options,
            latpar::loop::describe_stages(one, rule(), {window[2], c.height, c.width},
                                          c.cat_latents, guidance_ranks),
            stages);
    }
    [[nodiscard]] static latpar::linear_scheduler schedule(const recorded_video& c) {
        return latpar::schedule::by_name(c.scheduler, c.steps);
    }
    [[nodiscard]] static latpar::guidance_rule rule() {
        return latpar::guidance_rule::classifier_free(4.0);
    }
    /// The recorded noise of a block.
    [[nodiscard]] auto noise(const recorded_video& c) const {
        return [this, name = c.name](latpar::index_t block, latpar::latent_view out,
                                     latpar::stream_ref) {
            const auto values =
                recorded_latent(file_, name + ".noise_block_" + std::to_string(block));
            latpar::kernel::host{}.copy(values.view(), out);
        };
    }

    template <latpar::communicator Comm>
    [[nodiscard]] video_report sample(Comm& inner, const recorded_video& c) const {
        latpar::metered comm(inner.duplicate());
        video_report out = sample_on(comm, c, plan(c, comm.size()));
        out.sent_bytes = comm.account().total().bytes_sent;
        return out;
    }
    /// On the stages of a communicator, or on a mesh; leaves the sent bytes to the caller.
    template <class Ranks>
    [[nodiscard]] video_report sample_on(Ranks& ranks, const recorded_video& c,
                                         const latpar::loop::dual_paral_plan& plan) const {
        latpar::counting_resource memory;
        auto own = model();
        latpar::loop::dual_paral loop(own, ranks, schedule(c), rule(), plan, latpar::kernel::host{},
                                      {&memory, latpar::memory_space::host});
        video_report out;
        out.taken_bytes = memory.bytes_in_use();
        const latpar::index_t before = memory.allocations();
        latpar::index_t next = 0;
        loop.run(noise(c), [&](latpar::const_latent_view block, latpar::index_t first) {
            latpar::detail::require(first == next, "block at ", first, " came for ", next);
            next += block.extents[2];
            append_frames(out.video, block);
        });
        out.late_allocations = memory.allocations() - before;
        return out;
    }

    [[nodiscard]] double distance(const recorded_video& c, const std::string& what,
                                  const std::vector<float>& video) const {
        const latpar::latent expected = recorded_latent(file_, c.name + "." + what);
        std::vector<float> frames;
        append_frames(frames, expected.view());
        return relative_l2(video, frames);
    }

private:
    static void append_frames(std::vector<float>& out, const latpar::const_latent_view& block) {
        for (latpar::index_t t = 0; t < block.extents[2]; ++t)
            for (latpar::index_t ch = 0; ch < block.extents[1]; ++ch)
                for (latpar::index_t h = 0; h < block.extents[3]; ++h)
                    for (latpar::index_t w = 0; w < block.extents[4]; ++w)
                        out.push_back(block.as<float>()[block.offset({0, ch, t, h, w})]);
    }

    latpar::safetensors_file file_;
    std::shared_ptr<const wan::weights> weights_;
};

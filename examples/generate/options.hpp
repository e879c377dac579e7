// SPDX-License-Identifier: Apache-2.0
// The command line of latpar-generate.
#pragma once

#include <latpar/loop/para_step_plan.hpp>
#include <latpar/step/latent_parallel_plan.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace generate {

enum class plan_format { none, table, json };

/// Where ranks compute.
enum class device_kind { cpu, cuda };

/// How what lies on devices travels between them.
enum class transport {
    automatic,  ///< NCCL, if it is built in and every rank has a device of its own
    nccl,
    staged,  ///< through host memory
};

/// A long video: DualParal, along the axis stage.
struct video_options {
    latpar::index_t block_latents = 8;
    latpar::index_t cat_latents = 8;
    std::optional<latpar::index_t> total_latents;  ///< delivered; 0: no end; absent: the clip's
    bool independent_noise = false;                ///< of each block; else coordinated
    std::filesystem::path save_state;
    std::filesystem::path resume;
    latpar::index_t stop_after = 0;  ///< iterations; 0: none
};

/// What the user asked for. Shapes count latent positions unless they say pixels.
struct options {
    std::string prompt = "red circle, blue star, night";
    std::filesystem::path text_embedding;
    std::filesystem::path weights;
    std::string mesh;
    int ranks = 0;    ///< 0: as many as the mesh has
    int threads = 0;  ///< of each rank; 0: the processor's, divided among the ranks
    device_kind device = device_kind::cpu;
    latpar::dtype precision = latpar::dtype::f32;  ///< of the model's matrices and activations
    transport backend = transport::automatic;      ///< between devices
    latpar::index_t frames = 16;
    latpar::index_t height = 96;                           ///< pixels
    latpar::index_t width = 96;                            ///< pixels
    std::optional<std::array<latpar::index_t, 4>> latent;  ///< C, T, H, W, in place of pixels
    std::optional<latpar::extents3> patch;                 ///< for plans without weights
    std::string scheduler = "euler_flow";
    latpar::index_t steps = 25;
    double guidance = 3.0;
    std::uint64_t seed = 6;
    latpar::latent_parallel_options latent_parallel{};
    latpar::loop::para_step_options para_step{};  ///< warm-up and reuse serve batches too
    int batch_step = 0;                           ///< steps in a batch; 0: one a call
    video_options video{};
    bool compare_serial = false;
    std::vector<std::filesystem::path> outputs;
    std::filesystem::path report;
    double frames_per_second = 12;
    plan_format plan = plan_format::none;
    bool quiet = false;
};

/// Reads the command line; std::nullopt with an exit code in `status` if there is nothing to run.
///
/// Errors: usage_error for values that do not go together.
[[nodiscard]] std::optional<options> parse_options(int argc, char** argv, int& status);

}  // namespace generate

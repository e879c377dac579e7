// SPDX-License-Identifier: Apache-2.0
// The figures of a run, as JSON and as a table for people.
#pragma once

#include <latpar/core/dtype.hpp>

#include <array>
#include <optional>
#include <string>
#include <vector>

namespace generate {

/// What went along an axis of the mesh, from all ranks.
struct axis_bytes {
    std::string axis;
    latpar::index_t planned = 0;
    latpar::index_t metered = 0;
};

/// How ParaStep or BatchStep ran.
struct step_rounds {
    int steps = 1;  ///< in a round or batch
    latpar::index_t warm_up = 0;
    std::string reuse;
    std::string history;
};

/// How often the denoiser and the model were called.
struct call_counts {
    latpar::index_t total = 0;  ///< guided predictions, each of one part
    latpar::index_t critical_path = 0;
    latpar::index_t model_total = 0;  ///< of one branch each
    latpar::index_t model_critical_path = 0;
    latpar::index_t model_serial = 0;  ///< by one rank alone
};

/// How a long video went. Lists have one entry for each rank.
struct video_figures {
    latpar::index_t block_latents = 0;
    latpar::index_t cat_latents = 0;
    latpar::index_t total_latents = 0;  ///< of the whole video; 0: no end
    latpar::index_t first_latent = 0;   ///< the first that this run delivered
    latpar::index_t latents = 0;        ///< delivered by this run
    latpar::index_t blocks = 0;         ///< that they are
    latpar::index_t first_iteration = 0;
    latpar::index_t iterations = 0;  ///< of this run
    latpar::index_t tasks = 0;       ///< steps of blocks, each of all layers and branches
    double seconds_per_latent = 0;
    std::vector<double> idle_planned;  ///< shares, if messages were free
    /// Time spent waiting for messages; empty where the host does not wait for them.
    std::vector<double> idle_measured;
    double mean_idle_planned = 0;
    std::optional<double> mean_idle_measured;
};

/// What a run cost and how it compares. Lists have one entry for each rank.
struct report {
    std::string policy;
    std::string mesh;
    int ranks = 1;
    std::string backend;
    std::string device = "cpu";
    std::vector<std::string> devices;  ///< names and numbers of GPUs
    std::string precision = "f32";     ///< of the model
    std::string model;
    std::array<latpar::index_t, 4> latent{};
    latpar::index_t steps = 0;
    std::uint64_t seed = 0;
    std::string scheduler;
    int threads = 1;  ///< of each rank
    std::optional<step_rounds> rounds;
    std::optional<video_figures> video;
    double wall_seconds = 0;
    std::optional<call_counts> calls;
    double critical_fraction = 1;  ///< positions of the largest part over those of the latent
    latpar::index_t bytes_planned = 0;
    latpar::index_t bytes_total = 0;
    std::vector<latpar::index_t> bytes_sent;
    std::vector<axis_bytes> bytes_of_axes;
    std::optional<latpar::index_t> bytes_paper;
    std::vector<latpar::index_t> workspace_bytes;
    std::vector<latpar::index_t> peak_bytes;
    std::optional<double> serial_wall_seconds;
    std::optional<latpar::index_t> serial_peak_bytes;
    /// Against one rank alone; see likeness.
    std::optional<double> psnr_db;
    std::optional<double> relative_error;
    /// Files, the report apart.
    std::vector<std::string> written;
};

/// Indented JSON; absent figures are null.
[[nodiscard]] std::string to_json(const report& figures);
[[nodiscard]] std::string to_summary(const report& figures);

}  // namespace generate

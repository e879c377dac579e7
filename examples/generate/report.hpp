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

/// What a run cost and how it compares. Lists have one entry for each rank.
struct report {
    std::string policy;
    std::string mesh;
    int ranks = 1;
    std::string backend;
    std::string device = "cpu";
    std::string model;
    std::array<latpar::index_t, 4> latent{};
    latpar::index_t steps = 0;
    std::uint64_t seed = 0;
    std::string scheduler;
    int threads = 1;  ///< of each rank
    std::optional<step_rounds> rounds;
    double wall_seconds = 0;
    latpar::index_t calls_total = 0;  ///< guided predictions, each of one part
    latpar::index_t calls_critical_path = 0;
    latpar::index_t model_calls_total = 0;  ///< of one branch each
    latpar::index_t model_calls_critical_path = 0;
    latpar::index_t model_calls_serial = 0;  ///< by one rank alone
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
};

/// Indented JSON; absent figures are null.
[[nodiscard]] std::string to_json(const report& figures);
[[nodiscard]] std::string to_summary(const report& figures);

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// What the ranks of any job share: their communicator, their threads, sums over all of them.
#pragma once

#include <latpar/comm/any_communicator.hpp>
#include <latpar/comm/mesh.hpp>
#include <latpar/comm/metered.hpp>

#include <generate/job.hpp>
#include <generate/report.hpp>

#include <chrono>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace generate {

using communicator = latpar::metered<latpar::any_communicator>;

/// Who is told how far a loop is, and who may stop it.
struct watch {
    const char* label;
    bool silent;
    const std::function<bool()>& stop_requested;
};

[[nodiscard]] double seconds_since(std::chrono::steady_clock::time_point start);

/// Threads for one of `instances` models that run on this host at once.
[[nodiscard]] int threads_for(int instances);

/// What all ranks pass, on all of them. Ranks: All.
[[nodiscard]] std::vector<latpar::index_t> from_all(latpar::any_communicator& world,
                                                    latpar::index_t value);
[[nodiscard]] std::vector<double> from_all(latpar::any_communicator& world, double value);

[[nodiscard]] latpar::index_t sum(const std::vector<latpar::index_t>& values);

/// Errors: error if what was metered is not what was planned.
void require_as_planned(const std::string& what, latpar::index_t metered, latpar::index_t planned);

/// Enters what the job is.
void describe_job(const job& j, report& figures);

/// Enters what the mesh metered along its axes, with the bytes that all ranks were to send along
/// each. Ranks: All. Errors: error if the two differ.
void count_bytes(latpar::any_communicator& world, latpar::mesh<communicator>& mesh,
                 std::span<const axis_bytes> planned, report& figures);

}  // namespace generate

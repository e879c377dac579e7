// SPDX-License-Identifier: Apache-2.0
// What the ranks of any job share: their communicator, their threads, sums over all of them.
#include <latpar/core/error.hpp>

#include <generate/rank.hpp>

#include <algorithm>
#include <iomanip>
#include <numeric>
#include <sstream>
#include <thread>

namespace generate {

using latpar::index_t;

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int threads_for(int instances) {
    const int all = static_cast<int>(std::thread::hardware_concurrency());
    return std::max(1, all / instances);
}

std::vector<index_t> from_all(latpar::any_communicator& world, index_t value) {
    std::vector<index_t> out;
    for (const std::string& text : world.control_all_gather(std::to_string(value))) {
        out.push_back(std::stoll(text));
    }
    return out;
}

std::vector<double> from_all(latpar::any_communicator& world, double value) {
    std::ostringstream here;
    here << std::setprecision(17) << value;
    std::vector<double> out;
    for (const std::string& text : world.control_all_gather(here.str())) {
        out.push_back(std::stod(text));
    }
    return out;
}

index_t sum(const std::vector<index_t>& values) {
    return std::accumulate(values.begin(), values.end(), index_t{0});
}

void require_as_planned(const std::string& what, index_t metered, index_t planned) {
    latpar::detail::require<latpar::error>(metered == planned, "metered ", metered, ' ', what,
                                           " where ", planned, " were planned; please report this");
}

void describe_job(const job& j, report& figures) {
    figures.model = j.model_name;
    figures.steps = j.schedule.steps();
    figures.seed = j.options.seed;
    figures.scheduler = j.schedule.name();
}

void count_bytes(latpar::any_communicator& world, latpar::mesh<communicator>& mesh,
                 std::span<const axis_bytes> planned, report& figures) {
    index_t sent = 0;
    figures.bytes_planned = 0;
    for (axis_bytes along : planned) {
        const bool talks = mesh.degree(along.axis) > 1;  // the others share one channel
        const index_t here = talks ? mesh.axis(along.axis).account().total().bytes_sent : 0;
        sent += here;
        along.metered = sum(from_all(world, here));
        require_as_planned("bytes along " + along.axis, along.metered, along.planned);
        figures.bytes_planned += along.planned;
        figures.bytes_of_axes.push_back(along);
    }
    figures.bytes_sent = from_all(world, sent);
    figures.bytes_total = sum(figures.bytes_sent);
    require_as_planned("bytes", figures.bytes_total, figures.bytes_planned);
}

}  // namespace generate

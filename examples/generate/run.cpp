// SPDX-License-Identifier: Apache-2.0
// One rank's share of a job.
#include <latpar/comm/agreement.hpp>

#include <generate/on_cuda.hpp>
#include <generate/on_host.hpp>
#include <generate/run.hpp>
#include <generate/run_on.hpp>

namespace generate {

ending run_rank(latpar::any_communicator& world, const job& j, const surroundings& around,
                report& figures) {
    // Whatever goes wrong on one rank, a full disk for one, must not leave the others waiting.
    return latpar::guarded(world, [&] {
        return j.options.device == device_kind::cuda ? run_on_cuda(world, j, around, figures)
                                                     : run_on<on_host>(world, j, around, figures);
    });
}

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// Ranks that compute on GPUs: not in this build.
#include <latpar/core/error.hpp>

#include <generate/on_cuda.hpp>

namespace generate {

void require_built(const options& wanted) {
    latpar::detail::require(wanted.device == device_kind::cpu,
                            "--device cuda is not part of this build; configure with "
                            "-DLATPAR_ENABLE_CUDA=ON, or use --device cpu");
}

void require_device(const options& wanted) {
    require_built(wanted);
}

ending run_on_cuda(latpar::any_communicator&, const job& j, const surroundings&, report&) {
    require_built(j.options);
    return ending::stopped;
}

}  // namespace generate

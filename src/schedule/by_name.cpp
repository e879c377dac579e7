// SPDX-License-Identifier: Apache-2.0
// Schedulers by name.
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>
#include <latpar/schedule/dpmpp2m.hpp>
#include <latpar/schedule/euler_flow.hpp>
#include <latpar/schedule/unipc_flow.hpp>

namespace latpar::inline v0::schedule {

linear_scheduler by_name(std::string_view name, index_t steps) {
    if (name == "euler_flow") return euler_flow({.steps = steps});
    if (name == "unipc_flow") return unipc_flow({.steps = steps});
    if (name == "dpmpp2m_flow") return dpmpp2m({.steps = steps});
    if (name == "ddim_eps") return ddim(ddim_options::epsilon(steps));
    if (name == "ddim_v") return ddim(ddim_options::v(steps));
    if (name == "dpmpp2m_eps") {
        return dpmpp2m({.steps = steps, .prediction = prediction_type::epsilon});
    }
    std::string known;
    for (const std::string_view each : names) known.append(known.empty() ? "" : ", ").append(each);
    throw usage_error(
        latpar::detail::concat("there is no scheduler '", name, "'; use one of ", known));
}

}  // namespace latpar::inline v0::schedule

// SPDX-License-Identifier: Apache-2.0
// Every scheduler against recorded trajectories around the denoiser in closed form.
#include "sampling.hpp"

#include <latpar/io/safetensors.hpp>
#include <latpar/schedule/by_name.hpp>

#include <support/catch.hpp>
#include <support/recorded.hpp>
#include <support/reference.hpp>

using namespace latpar;

TEST_CASE("schedulers match their recorded trajectories") {
    const auto file = safetensors_file::open(reference_file("schedulers.safetensors"));
    for (const std::string_view name : schedule::names) {
        for (const index_t n : {8, 20, 50}) {
            const std::string prefix = std::string(name) + "." + std::to_string(n) + ".";
            const linear_scheduler scheduler = schedule::by_name(name, n);
            CAPTURE(prefix);
            CHECK(scheduler.name() == name);
            REQUIRE(scheduler.steps() == n);

            const auto timesteps = file.at(prefix + "timesteps").values<double>();
            CHECK(std::ranges::equal(scheduler.timesteps(), timesteps));
            // DDIM has none in the recordings.
            const auto* sigmas = file.find(prefix + "sigmas");
            CHECK((sigmas != nullptr) == !name.starts_with("ddim"));
            if (sigmas) {
                const auto recorded = sigmas->values<double>();
                REQUIRE(recorded.size() == scheduler.sigmas().size());
                for (std::size_t i = 0; i < recorded.size(); ++i) {
                    CHECK(scheduler.sigmas()[i] == Approx(recorded[i]).epsilon(1e-6).margin(1e-6));
                }
            }

            sampling state(scheduler, recorded_latent(file, prefix + "initial"));
            index_t compared = 0;
            for (index_t i = 0; i < n; ++i) {
                state.step(i, closed_form{});
                const std::string key = prefix + "after_step_" + std::to_string(i);
                if (!file.find(key)) continue;
                const double distance = relative_l2(state.z, recorded_latent(file, key));
                CAPTURE(i, distance);
                CHECK(distance < 2e-5);
                ++compared;
            }
            CHECK(compared == 5);
        }
    }
}

TEST_CASE("guided sampling on one rank matches its recordings") {
    const auto file = safetensors_file::open(reference_file("para_step.safetensors"));
    const closed_form model{.conditional = 0.7f, .unconditional = -0.3f, .guidance = 4};
    for (const std::string name : {"euler_flow", "unipc_flow", "ddim_v"}) {
        const linear_scheduler scheduler = schedule::by_name(name, 20);
        sampling state(scheduler, recorded_latent(file, "initial"));
        for (index_t i = 0; i < scheduler.steps(); ++i) state.step(i, model);
        const double distance =
            relative_l2(state.z, recorded_latent(file, "p1." + name + ".warm3.final"));
        CAPTURE(name, distance);
        CHECK(distance < 2e-5);
    }
}

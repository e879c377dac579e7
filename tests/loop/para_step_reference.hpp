// SPDX-License-Identifier: Apache-2.0
// The recorded runs of ParaStep's public code.
#pragma once

#include <latpar/io/safetensors.hpp>
#include <latpar/schedule/by_name.hpp>

#include <support/latent_parallel_run.hpp>
#include <support/recorded.hpp>
#include <support/reference.hpp>

#include <string>
#include <vector>

struct recorded_rounds {
    int degree;
    std::string scheduler;
    latpar::index_t warm_up;

    [[nodiscard]] std::string key() const {
        return "p" + std::to_string(degree) + "." + scheduler + ".warm" + std::to_string(warm_up);
    }
};

/// 20 steps around the closed form under guidance 4.
class recorded_para_step {
public:
    recorded_para_step()
        : file_(latpar::safetensors_file::open(reference_file("para_step.safetensors"))) {}

    [[nodiscard]] static std::vector<recorded_rounds> runs() {
        std::vector<recorded_rounds> out;
        for (const int degree : {1, 2, 3, 4}) {
            for (const char* scheduler : {"euler_flow", "unipc_flow", "ddim_v"}) {
                for (const latpar::index_t warm_up : {3, 5}) {
                    out.push_back({degree, scheduler, warm_up});
                }
            }
        }
        return out;
    }

    [[nodiscard]] sampling_case initial(const recorded_rounds& run) const {
        const auto z = recorded_latent(file_, "initial");
        const auto values = z.elements<float>();
        return {z.view().extents, latpar::schedule::by_name(run.scheduler, 20), 0,
                std::vector<float>(values.begin(), values.end())};
    }

    [[nodiscard]] double distance(const recorded_rounds& run, std::span<const float> result) const {
        return relative_l2(result, latpar::to_float32(file_.at(run.key() + ".final")));
    }

private:
    latpar::safetensors_file file_;
};

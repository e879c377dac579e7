// SPDX-License-Identifier: Apache-2.0
// The denoiser of the example programs: the Wan transformer under classifier-free guidance.
#pragma once

#include <latpar/step/guided.hpp>

#include <generate/job.hpp>

namespace generate {

/// One rank's instance of a job's model, and how often it was called.
class guided_model {
public:
    guided_model(const job& j, int threads, latpar::memory_source memory)
        : model_(instance(j, threads, memory), j.options.guidance, {}, memory) {}

    void operator()(latpar::const_latent_view z, const latpar::step_info& info,
                    latpar::latent_view prediction, latpar::stream_ref stream) {
        ++calls_;
        model_(z, info, prediction, stream);
    }
    [[nodiscard]] latpar::index_t calls() const noexcept { return calls_; }

private:
    static wan::transformer<> instance(const job& j, int threads, latpar::memory_source memory) {
        auto exec = std::make_shared<wan::executor>(wan::executor_options{threads, "auto", memory});
        wan::transformer<> out(j.weights, std::move(exec));
        out.set_text(latpar::guidance_branch::conditional, j.conditional);
        out.set_text(latpar::guidance_branch::unconditional, j.unconditional);
        return out;
    }

    latpar::guided<wan::transformer<>> model_;
    latpar::index_t calls_ = 0;
};

}  // namespace generate

// SPDX-License-Identifier: Apache-2.0
// The denoisers of the example programs: the Wan transformer, and the same under guidance.
#pragma once

#include <latpar/step/guided.hpp>

#include <generate/job.hpp>

namespace generate {

/// One rank's instance of a job's model, for one branch of guidance a call, and how often it was
/// called: each sample of a batch counts as a call.
class branch_model {
public:
    branch_model(const job& j, int threads, latpar::memory_source memory)
        : model_(j.weights,
                 std::make_shared<wan::executor>(wan::executor_options{threads, "auto", memory})) {
        model_.set_text(latpar::guidance_branch::conditional, j.conditional);
        model_.set_text(latpar::guidance_branch::unconditional, j.unconditional);
    }

    void operator()(latpar::const_latent_view z, const latpar::step_info& info,
                    latpar::latent_view prediction, latpar::stream_ref stream) {
        calls_ += std::ssize(info.samples);
        model_(z, info, prediction, stream);
    }
    [[nodiscard]] latpar::index_t max_batch() const noexcept { return model_.max_batch(); }
    [[nodiscard]] latpar::index_t calls() const noexcept { return calls_; }

private:
    wan::transformer<> model_;
    latpar::index_t calls_ = 0;
};

/// The same under classifier-free guidance, and how often it was called. Asked for one branch it
/// gives that alone, so that it serves policies which combine the branches themselves.
class guided_model {
public:
    guided_model(const job& j, int threads, latpar::memory_source memory)
        : model_(branch_model(j, threads, memory), j.options.guidance, {}, memory) {}

    void operator()(latpar::const_latent_view z, const latpar::step_info& info,
                    latpar::latent_view prediction, latpar::stream_ref stream) {
        calls_ += std::ssize(info.samples);
        if (info.samples.empty() ||
            info.samples.front().branch == latpar::guidance_branch::guided) {
            model_(z, info, prediction, stream);
        } else {
            model_.model()(z, info, prediction, stream);
        }
    }
    [[nodiscard]] latpar::index_t max_batch() const { return model_.max_batch(); }
    [[nodiscard]] latpar::index_t calls() const noexcept { return calls_; }
    /// Calls of the model inside, for one branch each.
    [[nodiscard]] latpar::index_t branch_calls() noexcept { return model_.model().calls(); }

private:
    latpar::guided<branch_model> model_;
    latpar::index_t calls_ = 0;
};

}  // namespace generate

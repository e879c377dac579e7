// SPDX-License-Identifier: Apache-2.0
// The denoisers of the example programs: the Wan transformer, and the same under guidance.
#pragma once

#include <latpar/step/guided.hpp>

#include <generate/job.hpp>
#include <generate/on_host.hpp>
#include <wan/transformer.hpp>

#include <memory>
#include <string_view>
#include <utility>

namespace generate {

template <class Place>
using executor_of = std::shared_ptr<typename Place::trunk::executor>;
template <class Place>
using weights_at = std::shared_ptr<const typename Place::trunk::weights>;
/// What attends to the tokens of one rank.
template <class Place>
using local_attention_of = typename Place::trunk::local_attention;

/// An instance of the model with a job's texts. `Attention` may spread the tokens on ranks.
template <class Place, wan::attention Attention>
[[nodiscard]] wan::transformer<Attention, typename Place::trunk> model_of(const job& j,
                                                                          weights_at<Place> weights,
                                                                          executor_of<Place> exec,
                                                                          Attention attend) {
    wan::transformer<Attention, typename Place::trunk> out(std::move(weights), std::move(exec),
                                                           std::move(attend));
    out.set_text(latpar::guidance_branch::conditional, j.conditional);
    out.set_text(latpar::guidance_branch::unconditional, j.unconditional);
    return out;
}

/// One rank's instance of a job's model, for one branch of guidance a call, and how often it was
/// called: each sample of a batch counts as a call.
template <wan::attention Attention, class Place>
class basic_branch_model {
public:
    basic_branch_model(const job& j, weights_at<Place> weights, executor_of<Place> exec,
                       Attention attend)
        : model_(model_of<Place>(j, std::move(weights), std::move(exec), std::move(attend))) {}

    void operator()(latpar::const_latent_view z, const latpar::step_info& info,
                    latpar::latent_view prediction, latpar::stream_ref stream) {
        calls_ += std::ssize(info.samples);
        model_(z, info, prediction, stream);
    }
    [[nodiscard]] latpar::index_t max_batch() const noexcept { return model_.max_batch(); }
    [[nodiscard]] latpar::index_t calls() const noexcept { return calls_; }
    void abort(std::string_view reason) {
        if constexpr (requires { model_.abort(reason); }) model_.abort(reason);
    }

private:
    wan::transformer<Attention, typename Place::trunk> model_;
    latpar::index_t calls_ = 0;
};

/// The same under classifier-free guidance, and how often it was called. Asked for one branch it
/// gives that alone, so that it serves policies which combine the branches themselves.
template <wan::attention Attention, class Place = on_host>
class basic_guided_model {
public:
    basic_guided_model(const job& j, weights_at<Place> weights, const executor_of<Place>& exec,
                       Attention attend)
        : model_(
              basic_branch_model<Attention, Place>(j, std::move(weights), exec, std::move(attend)),
              j.options.guidance, {}, exec->memory()) {}
    basic_guided_model(
        const job& j, weights_at<Place> weights,
        const executor_of<Place>& exec) requires std::same_as<Attention, local_attention_of<Place>>
        : basic_guided_model(j, std::move(weights), exec, Attention(exec)) {}
    basic_guided_model(const job& j, int threads, latpar::memory_source memory) requires
        std::same_as<Attention, wan::local_attention>
        : basic_guided_model(j, j.weights,
                             std::make_shared<wan::executor>(wan::executor_options{threads, "auto",
                                                                                   memory})) {}

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
    void abort(std::string_view reason) { model_.model().abort(reason); }

private:
    latpar::guided<basic_branch_model<Attention, Place>, typename Place::kernels> model_;
    latpar::index_t calls_ = 0;
};

/// On the processor, on one rank.
using guided_model = basic_guided_model<wan::local_attention>;

}  // namespace generate

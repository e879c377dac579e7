// SPDX-License-Identifier: Apache-2.0
// DualParal: videos of any length through a pipeline of frame blocks and layers.
#pragma once

#include <latpar/comm/detail/memory_complaint.hpp>
#include <latpar/denoise/detail/combine_branches.hpp>
#include <latpar/denoise/staged_denoiser.hpp>
#include <latpar/io/safetensors.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/loop/detail/block_queue.hpp>
#include <latpar/loop/detail/latent_stepper.hpp>
#include <latpar/loop/detail/stage_messages.hpp>
#include <latpar/loop/dual_paral_plan.hpp>
#include <latpar/schedule/coordinated_noise.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace latpar::inline v0::loop {

/// What DualParal asks of a staged model: its layers, and for the branches of guidance that one of
/// `guidance_ranks` pipelines has, the hidden tensors of a window of B + C frames and a layer's
/// feature cache of C = `cat_latents`.
///
/// Errors: usage_error unless every pipeline has as many branches.
template <staged_denoiser Model>
[[nodiscard]] dual_paral_model describe_stages(const Model& model, const guidance_rule& rule,
                                               const extents3& window, index_t cat_latents,
                                               int guidance_ranks = 1) {
    const auto all = static_cast<index_t>(rule.branches().size());
    latpar::detail::require(guidance_ranks >= 1 && all % guidance_ranks == 0, all,
                            " branches of guidance cannot be shared evenly by ", guidance_ranks,
                            " pipelines; use a divisor of ", all);
    const index_t branches = all / guidance_ranks;
    dual_paral_model out{static_cast<index_t>(model.layer_count()), branches, guidance_ranks,
                         model.signature(branches, window), 0};
    if (cat_latents > 0) {
        const auto one = std::span(rule.branches()).first(static_cast<std::size_t>(branches));
        out.cache_bytes_per_layer = model.plan_cache(0, 1, one, cat_latents, window).bytes();
    }
    return out;
}

/// Seconds of a rank in `dual_paral::run`, on the host's clock.
struct stage_times {
    double running = 0;  ///< messages inside the model's layers included
    double waiting = 0;  ///< for messages of the loop; on a device, for its work before them too

    [[nodiscard]] double idle_share() const noexcept {
        return running + waiting > 0 ? waiting / (running + waiting) : 0;
    }
};

/// Samples a video block by block; each rank has some layers of the model, and blocks at different
/// noise levels go through them one behind the other.
///
/// Rank 0 owns the latents and steps them; the last rank returns the guided prediction. A block
/// sees C frames of the cleaner block before it, recomputed, and keys and values of C frames of the
/// noisier one behind it from the feature cache. A block is fed only when its own previous step and
/// that of its cleaner neighbour are in, so that the bits do not depend on the number of stages nor
/// on timing. Blocks are handed out as soon as they are done; memory does not grow with the length.
///
/// On a mesh, each place of the axes beside `stage` has a pipeline of its own, all for one video.
/// Along `guidance` they share the branches, and exchange predictions between their last stages;
/// along `ulysses` and `ring` the model's attention shares the tokens. The first rank of each has a
/// replica of the latents.
///
/// Ranks: all ranks of the communicator or the mesh construct it and make every call. Noise, the
/// same on all, serves the first rank of every pipeline; sink and callback serve that of the first
/// pipeline, rank 0. Every branch of guidance is computed at every step, whatever its weight.
/// Memory: `plan.workspace_bytes(rank)` from `source`, taken by the constructor. Where the stages
/// reach each other's (direct_communicator), their messages name targets there, and what those lie
/// in is not given back after a failure.
/// Errors: usage_error on every rank, before payload moves, if plans or schedules differ. An
/// exception on one rank makes the others throw with its message, those of the model's own
/// communicators too; make another loop then.
/// Source: DualParal (arXiv 2505.21070).
template <staged_denoiser Model, communicator Comm, scheduler Schedule,
          kernel_set Kernels = kernel::host>
requires std::constructible_from<typename Model::feature_cache, feature_cache_plan, Kernels,
                                 memory_source>
class dual_paral {
public:
    /// The model stays the caller's. A rank needs the weights of its own layers only,
    /// `plan.stages[rank]`, and what `embed` (rank 0) and `head` (the last) need.
    dual_paral(Model& model, Comm& stages, Schedule schedule, guidance_rule rule,
               dual_paral_plan plan, Kernels kernels = {}, memory_source source = {})
        : dual_paral(latpar::detail::pipelines<Comm>(stages), model, std::move(schedule),
                     std::move(rule), std::move(plan), std::move(kernels), source) {}
    /// On a mesh with axes `stage`, `guidance`, `ring` and `ulysses`, or some of them. A model whose
    /// ranks share the tokens is always given the mesh, so that its pipelines stop together.
    template <latpar::detail::staged_mesh Mesh>
    dual_paral(Model& model, Mesh& ranks, Schedule schedule, guidance_rule rule,
               dual_paral_plan plan, Kernels kernels = {}, memory_source source = {})
        : dual_paral(latpar::detail::pipelines<Comm>(ranks), model, std::move(schedule),
                     std::move(rule), std::move(plan), std::move(kernels), source) {}

    [[nodiscard]] const dual_paral_plan& plan() const noexcept { return plan_; }
    /// Iterations that are done: every block that has begun has had a step in each since.
    [[nodiscard]] index_t iteration() const noexcept { return iteration_; }
    [[nodiscard]] bool done() const noexcept {
        return plan_.iterations() >= 0 && iteration_ == plan_.iterations();
    }

    /// Of all runs so far.
    [[nodiscard]] stage_times times() const noexcept {
        return {running_, messages_.seconds_waited()};
    }

    /// Forgets everything; the next run begins a new video. On the first rank of every pipeline.
    void restart() noexcept {
        iteration_ = 0;
        is_whole_ = true;
    }

    /// Adds all that it takes to go on from here to a file: the blocks under way with their
    /// history, and the last that is done, which the next sees. On a first rank, between runs.
    ///
    /// Memory: host; in memory of another space `to_host(view)` gives each tensor as a dense view
    /// of the host's, valid until the file is written.
    /// Errors: usage_error during a run, or after one that threw.
    void save(safetensors_writer& file) const { save(file, std::identity{}); }
    template <std::invocable<const_latent_view> ToHost>
    void save(safetensors_writer& file, ToHost&& to_host) const {
        latpar::detail::require(is_first(), "stage ", rank(),
                                " has no latents to save; stage 0 has them");
        latpar::detail::require(is_whole_,
                                "a video cannot be saved during a run nor after one that threw, "
                                "which left tasks under way; save between runs");
        queue_.save(file, plan_, iteration_, video(), to_host);
    }
    /// Goes on from where another run was saved, on whatever mesh. On the first rank of every
    /// pipeline.
    ///
    /// Memory: host; in memory of another space `put(bytes, view)` copies a tensor's bytes into a
    /// dense view, before the next run.
    /// Errors: usage_error if that was another video: other extents, schedule, guidance or blocks;
    /// io_error for a file that does not hold what it should.
    void restore(const safetensors_file& file) {
        restore(file, [](std::span<const std::byte> bytes, latent_view to) {
            latpar::detail::require(to.space == memory_space::host, "the video's latents lie in ",
                                    latpar::name_of(to.space),
                                    " memory; pass a function that copies bytes there");
            std::copy(bytes.begin(), bytes.end(), to.data);
        });
    }
    template <std::invocable<std::span<const std::byte>, latent_view> Put>
    void restore(const safetensors_file& file, Put&& put) {
        guarded(*this, [&] {
            latpar::detail::require(is_first(), "stage ", rank(),
                                    " has no latents to restore; stage 0 has them");
            restart();
            try {
                iteration_ = queue_.load(file, plan_, video(), put);
            } catch (...) {
                restart();
                throw;
            }
        });
    }

    /// Runs until the end, or until `go_on(iteration)` returns false on rank 0; the iteration after
    /// that one is still done, then all ranks return whether the video is. Call it again to go on.
    ///
    /// `noise(block, out, stream)` is the noise that a block begins with; `sink(latents, first)`
    /// gets the frames of each block that is done, [1, C, frames, H, W], and the number of the
    /// first in the video; its view is valid, and its data is complete on `stream`, until it
    /// returns. `step_noise` serves schedulers that draw some.
    template <block_noise Noise, class Sink, std::predicate<index_t> GoOn, noise_source StepNoise>
    bool run(const Noise& noise, Sink&& sink, GoOn&& go_on, const StepNoise& step_noise,
             stream_ref stream = {}) {
        return guarded(*this, [&] {
            // The first rank has the latents, and so the say in where the video stands.
            iteration_ =
                std::stoll(ranks().stages().control_all_gather(std::to_string(iteration_)).front());
            ranks().agree_on("the iteration to go on from", iteration_);
            is_whole_ = false;
            const auto start = std::chrono::steady_clock::now();
            const double waited = messages_.seconds_waited();
            const bool finished =
                is_first() ? feed(noise, sink, go_on, step_noise, stream) : serve(stream);
            // Together, so that an exception in the last task still reaches all.
            messages_.waiting([&] {
                static_cast<void>(ranks().stages().control_all_gather({}));
                static_cast<void>(ranks().told_by_speaker({}));
            });
            const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
            running_ += taken.count() - (messages_.seconds_waited() - waited);
            is_whole_ = true;
            return finished;
        });
    }
    template <block_noise Noise, class Sink, std::predicate<index_t> GoOn>
    bool run(const Noise& noise, Sink&& sink, GoOn&& go_on, stream_ref stream = {}) {
        return run(noise, sink, go_on, latpar::detail::no_noise{}, stream);
    }
    template <block_noise Noise, class Sink>
    bool run(const Noise& noise, Sink&& sink, stream_ref stream = {}) {
        return run(noise, sink, latpar::detail::carry_on{}, latpar::detail::no_noise{}, stream);
    }

    /// Ends the waiting of all ranks, on the model's own communicators too.
    void abort(std::string_view reason) {
        ranks().abort(reason);
        latpar::detail::abort_model(*model_, reason);
    }

private:
    dual_paral(latpar::detail::pipelines<Comm> pipelines, Model& model, Schedule schedule,
               guidance_rule rule, dual_paral_plan plan, Kernels kernels, memory_source source)
        : model_(&model),
          plan_(std::move(plan)),
          rule_(std::move(rule)),
          stepper_(std::move(schedule), plan_.problem.latent_extents(), std::move(kernels),
                   plan_.problem.type, source),
          messages_(std::move(pipelines)) {
        // Refused on all ranks alike, which may try again: nothing is aborted.
        // Pipelines that share the tokens may have uneven parts of them.
        dual_paral_plan common = plan_;
        common.model.hidden.clear();
        common.model.cache_bytes_per_layer = 0;
        ranks().agree_on(
            "the DualParal plan, schedule and guidance",
            common.fingerprint() + ' ' + stepper_.fingerprint() + ' ' + rule_.fingerprint());
        const auto plans = ranks().stages().control_all_gather(plan_.fingerprint());
        std::optional<std::string> text;
        try {
            text = complaint(source);
        } catch (const std::exception& error) {
            text = error.what();
        }
        if (!text && std::ranges::count(plans, plans.front()) != std::ssize(plans)) {
            text = latpar::detail::concat(
                "its hidden tensors or feature cache are not those of the other stages: ",
                plan_.fingerprint());
        }
        ranks().agree_no_error(text);
        guarded(*this, [&] { take_memory(source); });
    }

    [[nodiscard]] latpar::detail::pipelines<Comm>& ranks() noexcept { return messages_.ranks(); }
    [[nodiscard]] const latpar::detail::pipelines<Comm>& ranks() const noexcept {
        return messages_.ranks();
    }
    [[nodiscard]] int rank() const noexcept { return messages_.rank(); }
    [[nodiscard]] bool is_first() const noexcept { return rank() == 0; }
    [[nodiscard]] bool is_last() const noexcept { return rank() + 1 == plan_.ranks; }
    [[nodiscard]] index_t channels() const noexcept { return plan_.problem.channels; }

    /// The branches of guidance that this pipeline computes.
    [[nodiscard]] std::span<const guidance_branch> own_branches() const {
        const auto count = static_cast<std::size_t>(plan_.model.branches);
        const auto place = static_cast<std::size_t>(ranks().guidance_place());
        return std::span(rule_.branches()).subspan(place * count, count);
    }
    /// What tells a video from others in a file.
    [[nodiscard]] std::string video() const {
        return plan_.video_fingerprint() + ' ' + stepper_.fingerprint() + ' ' + rule_.fingerprint();
    }

    [[nodiscard]] std::optional<std::string> complaint(const memory_source& source) const {
        using latpar::detail::concat;
        const Comm& stages = ranks().stages();
        if (plan_.ranks != stages.size()) {
            return concat("DualParal was planned for ", plan_.ranks,
                          " stages, the communicator has ", stages.size(),
                          " ranks; plan for its size");
        }
        if (plan_.model.guidance_ranks != ranks().guidance_ranks()) {
            return concat("DualParal was planned for guidance=", plan_.model.guidance_ranks,
                          ", pipelines that share the branches, and is given guidance=",
                          ranks().guidance_ranks(), "; pass that to describe_stages");
        }
        if (auto text = stepper_.complaint_about(plan_.problem, "DualParal")) return text;
        if (describe_stages(*model_, rule_, plan_.problem.extents, plan_.options.cat_latents,
                            plan_.model.guidance_ranks) != plan_.model) {
            return concat("DualParal was planned for a model of ", plan_.model.layers,
                          " layers and ", plan_.model.branches,
                          " branches, or for other hidden tensors or another feature cache, than "
                          "this one has; plan with describe_stages of its window and context");
        }
        if (const auto text = rule_.complaint_about(plan_.problem.steps)) return text;
        if (!Schedule::elementwise) {
            return "this scheduler is not elementwise: blocks of frames cannot be stepped apart";
        }
        return latpar::detail::memory_complaint(stages, stepper_.kernels(), source);
    }

    void take_memory(memory_source source) {
        const auto windows = [&](index_t count) {
            return latent_block(count * plan_.window_latents() * plan_.frame_bytes(),
                                plan_.problem.type, source);
        };
        messages_.take(plan_, source);
        if (plan_.options.cat_latents > 0) {
            const layer_range& own = plan_.stages[static_cast<std::size_t>(rank())];
            cache_.emplace(model_->plan_cache(own.first, own.last, own_branches(),
                                              plan_.options.cat_latents, plan_.problem.extents),
                           stepper_.kernels(), source);
        }
        if (is_first()) {
            queue_.take(plan_, source);
            window_ = windows(plan_.model.branches);
            stepper_.take_noise(volume_of(plan_.problem.extents));
        }
        if (is_last()) {
            predictions_ = windows(plan_.model.branches);
            if (ranks().guides()) {
                gathered_ = windows(plan_.model.guidance_ranks * plan_.model.branches);
            }
            sum_ = windows(1);
        }
    }

    // ---- what every stage does ----

    [[nodiscard]] step_info info_of(const dual_paral_task& task) {
        samples_.clear();
        for (const guidance_branch branch : own_branches()) {
            sample_info sample = stepper_.sample_at(task.step);
            sample.branch = branch;
            samples_.push_back(sample);
        }
        const box window = plan_.window_of(task);
        extents3 global = window.extent;
        global[0] += window.origin[0];
        return {samples_, window, global, {}};
    }

    /// This stage's layers of a task.
    void run_layers(const dual_paral_task& task, index_t number, typename Model::context& context,
                    stream_ref stream) {
        const layer_range& own = plan_.stages[static_cast<std::size_t>(rank())];
        if (cache_) {
            if (task.is_tail) cache_->clear();
            cache_->keep(task.has_front ? plan_.options.cat_latents : 0, plan_.options.cat_latents);
        }
        model_->layers(own.first, own.last, context, messages_.hidden(number),
                       cache_ ? &*cache_ : nullptr, stream);
    }

    /// The guided prediction of a block's own frames, in `to`.
    void run_head(const dual_paral_task& task, index_t number, typename Model::context& context,
                  latent_view to, stream_ref stream) {
        const box own = plan_.frames_of(task.block);
        predictions_.place(plan_.model.branches, channels(), plan_.window_of(task));
        model_->head(context, messages_.hidden(number), predictions_.view(), stream);
        const latent_view here = predictions_.view(own);
        const latent_view all = ranks().guides() ? from_all_guides(own, here, stream) : here;
        branch_views_.clear();
        for (index_t k = 0; k < all.extents[0]; ++k) {
            branch_views_.push_back(latpar::detail::sample_of(const_latent_view(all), k));
        }
        sum_.place(1, channels(), own);
        const sample_info sample = stepper_.sample_at(task.step);
        latpar::detail::combine_branches(stepper_.kernels(), rule_, std::span(&sample, 1),
                                         branch_views_, sum_.view(), stream);
        if (plan_.options.wire_prediction != plan_.problem.type) {
            stepper_.kernels().round(sum_.view(), plan_.options.wire_prediction, stream);
        }
        stepper_.kernels().copy(std::as_const(sum_).view(), to, stream);
    }

    /// The predictions of all branches, those of the other pipelines included.
    [[nodiscard]] latent_view from_all_guides(const box& own, latent_view here, stream_ref stream) {
        Comm& guides = *ranks().guides();
        gathered_.place(guides.size() * plan_.model.branches, channels(), own);
        const latent_view all = gathered_.view();
        const auto of = [&](int place) {
            latent_view v = all;
            v.data += place * plan_.model.branches * v.strides[0] * size_of(v.type);
            v.extents[0] = plan_.model.branches;
            return v;
        };
        const latent_view mine = of(guides.rank());
        stepper_.kernels().copy(here, mine, stream);
        sends_.clear();
        recvs_.clear();
        for (int place = 0; place < guides.size(); ++place) {
            if (place == guides.rank()) continue;
            const latent_view theirs = of(place);
            sends_.push_back({mine.data, mine.elements(), mine.type, place, mine.space});
            recvs_.push_back({theirs.data, theirs.elements(), theirs.type, place, theirs.space});
        }
        auto exchange = guides.start_exchange(sends_, recvs_, stream);
        messages_.waiting([&] { wait_on_host(exchange); });
        return all;
    }

    // ---- ranks behind the first ----

    bool serve(stream_ref stream) {
        if (done()) return true;
        bool follows = true;  // whether another iteration comes after this one
        index_t number = plan_.tasks_before(iteration_);
        std::vector<dual_paral_task> tasks = plan_.tasks_of(iteration_);
        messages_.expect(tasks.front(), number, stream);
        while (follows) {
            std::vector<dual_paral_task> next;
            for (std::size_t k = 0; k < tasks.size(); ++k, ++number) {
                const dual_paral_task& task = tasks[k];
                messages_.receive(number);
                if (task.is_tail) follows = messages_.follows(number);
                if (k + 1 == tasks.size() && follows) next = plan_.tasks_of(iteration_ + 1);
                const dual_paral_task* after = nullptr;
                if (k + 1 < tasks.size()) after = &tasks[k + 1];
                if (k + 1 == tasks.size() && follows) after = &next.front();
                // The next task comes in while this one is worked on. One that is fed only when
                // this one is done cannot, and a device that waits for it may load no kernels.
                const bool comes_early = after && plan_.needs(*after) < number;
                if (comes_early) messages_.expect(*after, number + 1, stream);
                typename Model::context context = model_->prepare(info_of(task), stream);
                run_layers(task, number, context, stream);
                if (!is_last()) {
                    messages_.send_on(task, number, follows, stream);
                } else {
                    const latent_view out = messages_.outgoing(plan_, task, number);
                    run_head(task, number, context, out, stream);
                    messages_.send_back(plan_, number, stream);
                }
                if (after && !comes_early) messages_.expect(*after, number + 1, stream);
            }
            ++iteration_;
            tasks = std::move(next);
        }
        messages_.flush();
        return done();
    }

    // ---- the first rank ----

    template <class Noise, class Sink, class GoOn, class StepNoise>
    bool feed(const Noise& noise, Sink& sink, GoOn& go_on, const StepNoise& step_noise,
              stream_ref stream) {
        index_t number = plan_.tasks_before(iteration_);
        pending_.clear();
        returned_ = number;
        bool stop = false;
        bool follows = !done();
        const auto take_until = [&](index_t count) {
            while (returned_ < count) take_back(sink, step_noise, stream);
        };
        while (follows) {
            follows = !stop && iteration_ + 1 != plan_.iterations();
            for (const dual_paral_task& task : plan_.tasks_of(iteration_)) {
                take_until(std::max(plan_.needs(task) + 1, number + 1 - plan_.depth()));
                if (task.step == 0) begin_block(task, noise, stream);
                feed_task(task, number++, follows, stream);
            }
            stop = stop || (follows && !goes_on(go_on));
            ++iteration_;
        }
        take_until(number);
        messages_.flush();
        return done();
    }

    /// What the callback of the first pipeline says, on the first ranks of all.
    template <class GoOn>
    [[nodiscard]] bool goes_on(GoOn& go_on) {
        std::string text = !ranks().speaks() || go_on(iteration_) ? "1" : "0";
        messages_.waiting([&] { text = ranks().told_by_speaker(std::move(text)); });
        return text == "1";
    }

    template <class Noise>
    void begin_block(const dual_paral_task& task, const Noise& noise, stream_ref stream) {
        queue_.place(plan_, task.block);
        latent_state& state = queue_.of(task.block);
        stepper_.fill(
            state.z, [&](latent_view out) { noise(task.block, out, stream); }, stream);
        const const_latent_view z = std::as_const(state.z).view();
        if (!ranks().has_peers() || z.space != memory_space::host) return;
        const std::string_view bits(reinterpret_cast<const char*>(z.data),
                                    static_cast<std::size_t>(z.bytes()));
        const std::string hash = std::to_string(std::hash<std::string_view>{}(bits));
        std::string told;
        messages_.waiting([&] { told = ranks().told_by_speaker(hash); });
        latpar::detail::require(told == hash, "the noise of block ", task.block,
                                " is not that of the first pipeline; pass the same on the first "
                                "rank of every pipeline");
    }

    void feed_task(const dual_paral_task& task, index_t number, bool follows, stream_ref stream) {
        const box window = plan_.window_of(task);
        const box own = plan_.frames_of(task.block);
        window_.place(plan_.model.branches, channels(), window);
        for (index_t k = 0; k < plan_.model.branches; ++k) {
            const latent_view sample = latpar::detail::sample_of(window_.view(), k);
            stepper_.kernels().copy(std::as_const(queue_.of(task.block).z).view(),
                                    subview(sample, relative_to(own, window.origin)), stream);
            if (!task.has_front) continue;
            box front = window;
            front.extent[0] = plan_.options.cat_latents;
            stepper_.kernels().copy(std::as_const(queue_.of(task.block - 1).z).view(front),
                                    subview(sample, relative_to(front, window.origin)), stream);
        }
        messages_.clear(number);
        typename Model::context context = model_->prepare(info_of(task), stream);
        model_->embed(std::as_const(window_).view(), context, messages_.hidden(number), stream);
        run_layers(task, number, context, stream);
        if (is_last()) {
            run_head(task, number, context, messages_.incoming(plan_, task, number), stream);
        } else {
            // Posted before the task goes on, so that no stage ever waits to hand its result back.
            messages_.expect_back(plan_, task, number, stream);
            messages_.send_on(task, number, follows, stream);
        }
        pending_.push_back(task);
    }

    /// Takes the prediction that is next in order, and steps its block.
    template <class Sink, class StepNoise>
    void take_back(Sink& sink, const StepNoise& step_noise, stream_ref stream) {
        const dual_paral_task task = pending_.front();
        pending_.erase(pending_.begin());
        messages_.receive_back(returned_);
        latent_state& state = queue_.of(task.block);
        const box own = plan_.frames_of(task.block);
        stepper_.step(task.step, state, own, messages_.incoming(plan_, task, returned_), step_noise,
                      stream);
        ++returned_;
        if (task.step + 1 < plan_.steps() || !ranks().speaks()) return;
        box delivered = own;
        delivered.extent[0] = plan_.delivered_of(task.block);
        sink(std::as_const(state.z).view(delivered), delivered.origin[0]);
    }

    Model* model_;
    dual_paral_plan plan_;
    guidance_rule rule_;
    latpar::detail::latent_stepper<Schedule, Kernels> stepper_;
    std::optional<typename Model::feature_cache> cache_;
    index_t iteration_ = 0;
    bool is_whole_ = true;  ///< whether no task is under way
    double running_ = 0;
    latpar::detail::block_queue queue_;
    latent_block window_;
    latent_block predictions_;
    latent_block gathered_;  ///< of all branches, where other pipelines have some
    latent_block sum_;
    std::vector<dual_paral_task> pending_;
    index_t returned_ = 0;
    std::vector<sample_info> samples_;
    std::vector<const_latent_view> branch_views_;
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
    // Last, so that what is in flight ends before its buffers do.
    latpar::detail::stage_messages<Comm> messages_;
};

template <class Model, latpar::detail::staged_mesh Mesh, class Schedule,
          kernel_set Kernels = kernel::host>
dual_paral(Model&, Mesh&, Schedule, guidance_rule, dual_paral_plan, Kernels = {},
           memory_source = {})
    -> dual_paral<Model, latpar::detail::axis_type<Mesh>, Schedule, Kernels>;

}  // namespace latpar::inline v0::loop

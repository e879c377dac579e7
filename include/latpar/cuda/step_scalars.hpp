// SPDX-License-Identifier: Apache-2.0
// The numbers of a schedule's steps in device memory, for steps that are captured in a CUDA graph.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/schedule/linear_scheduler.hpp>

namespace latpar::inline v0::cuda {

class captured_schedule;

/// The coefficients and timesteps of a schedule, and which steps are next, in device memory: a graph
/// that was captured once serves every step.
///
/// A graph makes `steps_at_once` consecutive steps, a window: one with `loop::serial`, as many as
/// its degree with `loop::para_step`, whose windows begin behind the warm-up. Within a capture
/// `advance` brings the numbers of the window to where `captured_schedule` and a model read them,
/// and goes on to the next window.
///
/// Memory: about steps * (1 + history)^2 * 4 bytes from `source`, device memory, taken by the
/// constructor. Neither copied nor moved, since graphs read it; it outlives them.
/// The loop counts what was captured, not what is replayed: `step()` and `done()` say where it was,
/// and `collect` gives the latent as it stands. What a policy does in turn is captured in turn:
/// LatentParallel cuts along one axis after another, a graph for each.
/// Errors: usage_error for memory of the host, a schedule that draws noise (whose noise is of one
/// step), no step or no sample at once, and a first step that the schedule has not; device_error
/// where CUDA refuses.
/// Example:
///     cuda::step_scalars scalars(schedule, device.source());
///     loop::serial loop(model, scalars.schedule(), extents, cuda::kernels{}, dtype::f32,
///                       device.source());   // a model that reads scalars.timesteps()
///     loop.start(noise, stream);
///     const auto native_stream = static_cast<cudaStream_t>(stream.ref().handle);
///     cudaStreamBeginCapture(native_stream, cudaStreamCaptureModeThreadLocal);
///     scalars.advance(stream);
///     const auto next = loop.next_request(stream);
///     model(next.z, next.info, next.prediction, stream);
///     loop.advance(stream);
///     cudaStreamEndCapture(native_stream, &graph);   // then launch it once for each step
class step_scalars {
public:
    /// `samples` are those of one model call; `first` is where windows begin.
    step_scalars(linear_scheduler schedule, memory_source source, index_t steps_at_once = 1,
                 index_t samples = 1, index_t first = 0);
    step_scalars(const step_scalars&) = delete;
    step_scalars& operator=(const step_scalars&) = delete;

    /// What a loop is given in place of the schedule.
    [[nodiscard]] captured_schedule schedule() const;
    /// The timestep of step k of the window, once for each sample, in device memory.
    /// Errors: usage_error if a window has no step k.
    [[nodiscard]] const float* timesteps(index_t k = 0) const;
    /// The coefficients of step k of the window. Errors: usage_error if a window has no step k.
    [[nodiscard]] device_coefficients coefficients(index_t k = 0) const;

    /// The next window begins with this step. Stream: ordered on it; not in a graph that is replayed.
    /// Errors: usage_error if there is no such step, or no window begins with it.
    void set(index_t step, stream_ref stream);
    /// Brings the numbers of the next window to where they are read. Stream: ordered on it.
    void advance(stream_ref stream);

    /// The step of the window that step i of the loop is, from the first window on.
    [[nodiscard]] index_t place_of(index_t i) const noexcept { return (i - first_) % window_; }
    [[nodiscard]] index_t first() const noexcept { return first_; }
    [[nodiscard]] const linear_scheduler& host_schedule() const noexcept { return schedule_; }

private:
    linear_scheduler schedule_;
    index_t window_;
    index_t samples_;
    index_t first_;
    index_t size_;  ///< coefficients of a step
    buffer memory_;
    std::int32_t* next_ = nullptr;   ///< the step that the next window begins with
    float* table_ = nullptr;         ///< [steps, size + 1]: coefficients and timestep
    float* timesteps_ = nullptr;     ///< [window, samples]
    float* coefficients_ = nullptr;  ///< [window, size]
};

/// A schedule whose steps read their coefficients where `step_scalars` has brought them, from the
/// first window on; before that it is the schedule itself. Refers to the step_scalars.
class captured_schedule {
public:
    static constexpr bool elementwise = linear_scheduler::elementwise;
    static constexpr index_t model_calls_per_step = linear_scheduler::model_calls_per_step;

    explicit captured_schedule(const step_scalars& scalars) noexcept : scalars_(&scalars) {}

    [[nodiscard]] const std::string& name() const noexcept { return host().name(); }
    [[nodiscard]] index_t steps() const noexcept { return host().steps(); }
    [[nodiscard]] std::span<const double> timesteps() const noexcept { return host().timesteps(); }
    [[nodiscard]] std::span<const double> sigmas() const noexcept { return host().sigmas(); }
    [[nodiscard]] index_t history_size() const noexcept { return host().history_size(); }
    [[nodiscard]] bool history_live(index_t i, index_t k) const {
        return host().history_live(i, k);
    }
    [[nodiscard]] bool draws_noise(index_t i) const { return host().draws_noise(i); }
    [[nodiscard]] std::string fingerprint() const { return host().fingerprint(); }

    /// As linear_scheduler::step, to the bit, for kernels that read coefficients in device memory.
    template <kernel_set Kernels>
    void step(index_t i, const step_state& state, const Kernels& kernels,
              stream_ref stream = {}) const {
        if (i < scalars_->first()) {
            host().step(i, state, kernels, stream);
            return;
        }
        host().with_operands(i, state, [&](auto inputs, auto outputs) {
            kernels.device_linear_combination(inputs, scalars_->coefficients(scalars_->place_of(i)),
                                              outputs, stream);
        });
    }

private:
    [[nodiscard]] const linear_scheduler& host() const noexcept {
        return scalars_->host_schedule();
    }

    const step_scalars* scalars_;
};

static_assert(scheduler<captured_schedule>);

inline captured_schedule step_scalars::schedule() const {
    return captured_schedule(*this);
}

}  // namespace latpar::inline v0::cuda

// SPDX-License-Identifier: Apache-2.0
// The numbers of steps: their table, and the window that is next.
#include "detail/launch.hpp"

#include <latpar/cuda/device.hpp>
#include <latpar/cuda/step_scalars.hpp>
#include <latpar/cuda/stream.hpp>

#include <algorithm>
#include <vector>

namespace latpar::inline v0::cuda {
namespace {

__global__ void set_kernel(std::int32_t* next, std::int32_t step) {
    *next = step;
}

struct window_task {
    std::int32_t* next;
    const float* table;
    float* timesteps;
    float* coefficients;
    std::int32_t steps, window, samples, size;
};

// One block: all its threads read which step is next before one of them goes on.
__global__ void advance_kernel(const window_task task) {
    const std::int32_t begin = *task.next;
    const auto row_of = [&](std::int32_t k) {
        const std::int32_t step = min(begin + k, task.steps - 1);
        return task.table + static_cast<std::size_t>(step) * (task.size + 1);
    };
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    for (std::int32_t i = thread; i < task.window * task.size; i += detail::block_threads) {
        task.coefficients[i] = row_of(i / task.size)[i % task.size];
    }
    for (std::int32_t i = thread; i < task.window * task.samples; i += detail::block_threads) {
        task.timesteps[i] = row_of(i / task.samples)[task.size];
    }
    __syncthreads();
    if (thread == 0) *task.next = begin + task.window;
}

}  // namespace

step_scalars::step_scalars(linear_scheduler schedule, memory_source source, index_t steps_at_once,
                           index_t samples, index_t first)
    : schedule_(std::move(schedule)),
      window_(steps_at_once),
      samples_(samples),
      first_(first),
      size_(static_cast<index_t>(schedule_.coefficients(0).size())) {
    using latpar::detail::aligned;
    using latpar::detail::require;
    const index_t steps = schedule_.steps();
    require(source.space == memory_space::cuda,
            "the numbers of steps lie in device memory; pass cuda::device_memory's source");
    require(window_ > 0 && samples_ > 0, "windows of ", window_, " steps with ", samples_,
            " samples were asked for; give one or more of each");
    require(first_ >= 0 && first_ < steps, "windows were to begin at step ", first_, " of ", steps);
    for (index_t i = 0; i < steps; ++i) {
        require(!schedule_.draws_noise(i), "step ", i, " of scheduler ", schedule_.name(),
                " draws noise, which a graph would repeat; capture a schedule that draws none");
    }
    std::vector<float> table;
    for (index_t i = 0; i < steps; ++i) {
        std::ranges::copy(schedule_.coefficients(i), std::back_inserter(table));
        table.push_back(static_cast<float>(schedule_.timesteps()[static_cast<std::size_t>(i)]));
    }
    const index_t table_bytes = steps * (size_ + 1) * 4;
    const index_t timestep_bytes = window_ * samples_ * 4;
    memory_ = buffer(
        aligned(4) + aligned(table_bytes) + aligned(timestep_bytes) + window_ * size_ * 4, source);
    std::byte* at = memory_.data();
    next_ = reinterpret_cast<std::int32_t*>(at);
    at += aligned(4);
    table_ = reinterpret_cast<float*>(at);
    at += aligned(table_bytes);
    timesteps_ = reinterpret_cast<float*>(at);
    at += aligned(timestep_bytes);
    coefficients_ = reinterpret_cast<float*>(at);
    const stream stream;
    copy_bytes(table_, table.data(), table_bytes, stream);
    set(first_, stream);
    stream.synchronize();
}

const float* step_scalars::timesteps(index_t k) const {
    latpar::detail::require(k >= 0 && k < window_, "step ", k, " was asked of windows of ",
                            window_);
    return timesteps_ + k * samples_;
}

device_coefficients step_scalars::coefficients(index_t k) const {
    latpar::detail::require(k >= 0 && k < window_, "step ", k, " was asked of windows of ",
                            window_);
    return {coefficients_ + k * size_, static_cast<std::size_t>(size_)};
}

void step_scalars::set(index_t step, stream_ref stream) {
    latpar::detail::require(step >= first_ && step < schedule_.steps() && place_of(step) == 0,
                            "a window was to begin at step ", step, "; they begin at ", first_,
                            " and every ", window_, " steps from there, and the schedule has ",
                            schedule_.steps());
    set_kernel<<<1, 1, 0, detail::native(stream)>>>(next_, static_cast<std::int32_t>(step));
    detail::check(cudaGetLastError(), "launching step_scalars::set");
}

void step_scalars::advance(stream_ref stream) {
    const window_task task{next_,
                           table_,
                           timesteps_,
                           coefficients_,
                           static_cast<std::int32_t>(schedule_.steps()),
                           static_cast<std::int32_t>(window_),
                           static_cast<std::int32_t>(samples_),
                           static_cast<std::int32_t>(size_)};
    detail::launch(advance_kernel, 1, stream, "step_scalars::advance", task);
}

}  // namespace latpar::inline v0::cuda

// SPDX-License-Identifier: Apache-2.0
// A CUDA graph of what was queued on a stream, and a sampler whose steps such graphs can make.
#pragma once

#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/step_scalars.hpp>
#include <latpar/denoise/step_info.hpp>

#include <cuda_runtime_api.h>

#include <cmath>
#include <stdexcept>
#include <vector>

/// What `f()` queues on a stream, captured in the mode that other threads do not disturb.
class captured_graph {
public:
    template <class F>
    captured_graph(latpar::stream_ref stream, F&& f)
        : stream_(static_cast<cudaStream_t>(stream.handle)) {
        must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
        cudaGraph_t graph = nullptr;
        try {
            f();
        } catch (...) {
            static_cast<void>(cudaStreamEndCapture(stream_, &graph));
            if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
            throw;
        }
        must(cudaStreamEndCapture(stream_, &graph));
        const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
        static_cast<void>(cudaGraphDestroy(graph));
        must(status);
    }
    captured_graph(captured_graph&& other) noexcept
        : stream_(other.stream_), graph_(std::exchange(other.graph_, nullptr)) {}
    captured_graph& operator=(captured_graph&&) = delete;
    ~captured_graph() {
        if (graph_ != nullptr) static_cast<void>(cudaGraphExecDestroy(graph_));
    }

    void replay() const { must(cudaGraphLaunch(graph_, stream_)); }

private:
    static void must(cudaError_t status) {
        if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
    }

    cudaStream_t stream_;
    cudaGraphExec_t graph_ = nullptr;
};

/// prediction = timestep * z, with the timestep of the call or, where it is given, that in device
/// memory.
struct timestep_model {
    const float* timestep = nullptr;

    void operator()(latpar::const_latent_view z, const latpar::step_info& info,
                    latpar::latent_view prediction, latpar::stream_ref stream) const {
        const std::array<latpar::const_latent_view, 1> inputs{z};
        const std::array<latpar::latent_view, 1> outputs{prediction};
        if (timestep != nullptr) {
            latpar::cuda::kernels{}.device_linear_combination(
                inputs, latpar::cuda::device_coefficients{timestep, 1}, outputs, stream);
        } else {
            const std::array factor{static_cast<float>(info.samples.front().timestep)};
            latpar::cuda::kernels{}.linear_combination(inputs, factor, outputs, stream);
        }
    }
};

/// A sampler with other numbers at each step, a history, and latents that stay of moderate size.
inline latpar::linear_scheduler swinging_schedule(latpar::index_t steps) {
    using form = latpar::linear_form;
    std::vector<double> timesteps, sigmas;
    std::vector<latpar::linear_step> rules;
    for (latpar::index_t i = 0; i < steps; ++i) {
        const double phase = 0.37 * static_cast<double>(i);
        timesteps.push_back(0.8 * std::sin(phase));
        sigmas.push_back(1.0 + static_cast<double>(steps - i));
        form z = 0.8 * form::z() + 0.2 * std::cos(phase) * form::prediction();
        if (i > 0) z = z + 0.1 * std::sin(2 * phase) * form::history(0);
        rules.push_back({z, {form::prediction()}});
    }
    sigmas.push_back(1.0);
    return {"swinging", timesteps, sigmas, rules};
}

/// The latent of a loop as it stands, on the host.
template <class Loop>
std::vector<float> content_of(Loop& loop, const std::array<latpar::index_t, 5>& extents,
                              latpar::stream_ref stream) {
    latpar::cuda::device_memory device;
    latpar::latent whole(extents, latpar::dtype::f32, device.source());
    loop.collect(whole.view(), stream);
    std::vector<float> out(static_cast<std::size_t>(whole.view().elements()));
    latpar::cuda::copy_bytes(out.data(), whole.view().data, whole.bytes(), stream);
    return out;
}

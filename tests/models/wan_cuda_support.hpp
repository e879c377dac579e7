// SPDX-License-Identifier: Apache-2.0
// The Wan transformer on a GPU, and what goes to it and comes back.
#pragma once

#include "wan_support.hpp"

#include <cuda/device_lab.hpp>
#include <cuda_runtime_api.h>
#include <wan/cuda/transformer.hpp>

#include <memory>
#include <stdexcept>
#include <vector>

inline void must(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

/// A model on the device, without text yet.
inline wan::cuda::transformer<> device_model(device_lab& lab, const wan::weights& weights,
                                             latpar::dtype type,
                                             wan::positions where = wan::positions::local) {
    return wan::cuda::transformer<>(
        wan::cuda::upload_weights(weights, type, lab.memory()),
        std::make_shared<wan::cuda::executor>(wan::cuda::executor_options{type, lab.memory()}),
        where);
}

/// A copy in device memory, with the strides of the original.
inline latpar::latent uploaded(device_lab& lab, const latpar::latent& z) {
    latpar::latent out(z.view().extents, z.view().type, lab.memory());
    lab.upload(out.view().data, {z.view().data, static_cast<std::size_t>(z.bytes())});
    return out;
}

inline std::vector<float> downloaded(device_lab& lab, const float* from, latpar::index_t count) {
    std::vector<float> out(static_cast<std::size_t>(count));
    lab.download(std::as_writable_bytes(std::span(out)), reinterpret_cast<const std::byte*>(from));
    return out;
}
template <std::size_t Rank>
std::vector<float> downloaded(device_lab& lab, const latpar::tensor<Rank>& from) {
    return downloaded(lab, from.view().template as<float>(), from.view().elements());
}

/// The whole prediction for a latent of the host.
template <class Model>
std::vector<float> predicted(device_lab& lab, Model& model, const latpar::latent& z,
                             const latpar::step_info& info) {
    auto extents = z.view().extents;
    extents[1] = model.shape().out_channels;
    const latpar::latent there = uploaded(lab, z);
    latpar::latent prediction(extents, latpar::dtype::f32, lab.memory());
    model(there.view(), info, prediction.view(), lab.stream());
    return downloaded(lab, prediction);
}

/// What `work` queues on a stream, to be done again.
class captured_graph {
public:
    template <class Work>
    captured_graph(latpar::stream_ref stream, const Work& work) {
        const auto queue = static_cast<cudaStream_t>(stream.handle);
        must(cudaStreamBeginCapture(queue, cudaStreamCaptureModeGlobal));
        cudaGraph_t graph = nullptr;
        try {
            work();
        } catch (...) {
            static_cast<void>(cudaStreamEndCapture(queue, &graph));
            throw;
        }
        must(cudaStreamEndCapture(queue, &graph));
        must(cudaGraphInstantiate(&runnable_, graph, 0));
        must(cudaGraphDestroy(graph));
    }
    captured_graph(const captured_graph&) = delete;
    captured_graph& operator=(const captured_graph&) = delete;
    ~captured_graph() { static_cast<void>(cudaGraphExecDestroy(runnable_)); }

    void launch(latpar::stream_ref stream) const {
        must(cudaGraphLaunch(runnable_, static_cast<cudaStream_t>(stream.handle)));
    }

private:
    cudaGraphExec_t runnable_ = nullptr;
};

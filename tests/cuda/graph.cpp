// SPDX-License-Identifier: Apache-2.0
// Every kernel captured in a graph, and replayed on inputs that changed since.
#include "device_lab.hpp"
#include "kernel_cases.hpp"

#include <cuda_runtime_api.h>

using namespace latpar;

namespace {

void must(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

/// All of the kernels, one after the other, on tensors of one allocation each.
struct every_kernel {
    static constexpr std::array<index_t, 5> extents{1, 4, 5, 6, 52};
    static constexpr std::array<index_t, 5> part_extents{1, 4, 5, 6, 30};
    static constexpr std::array<index_t, 5> logs{1, 4, 5, 6, 1};

    explicit every_kernel(device_lab& lab)
        : z(extents, dtype::f32, lab.memory()),
          previous(extents, dtype::f32, lab.memory()),
          packed(extents, dtype::bf16, lab.memory()),
          left(part_extents, dtype::bf16, lab.memory()),
          right(part_extents, dtype::f32, lab.memory()),
          output(extents, dtype::f32, lab.memory()),
          lse(logs, dtype::f32, lab.memory()),
          part_lse(logs, dtype::f32, lab.memory()) {}

    [[nodiscard]] std::array<latent*, 8> all() {
        return {&z, &previous, &packed, &left, &right, &output, &lse, &part_lse};
    }

    void run(const device_lab::bound_kernels& kernels) {
        kernels.copy(z.view(), packed.view());
        const box left_box{{0, 0, 0}, {5, 6, 30}};
        const box right_box{{0, 0, 22}, {5, 6, 30}};
        const std::array pairs{kernel::copy_pair{subview(z.view(), left_box), left.view()},
                               kernel::copy_pair{subview(z.view(), right_box), right.view()}};
        kernels.copy_all(pairs);
        // Rows that begin and end within sectors.
        kernels.copy(left.view(), subview(previous.view(), {{0, 0, 11}, {5, 6, 30}}));
        kernels.round(right.view(), dtype::f16);
        // These end before the graph is replayed, and must not be read then.
        std::vector<float> weights(30, 0.25f);
        std::vector<kernel::stitch_part> parts{{left.view(), 0, weights},
                                               {right.view(), 22, weights}};
        kernels.stitch(output.view(), axis::w, parts);
        std::vector<float> coefficients{1, 0.5f, -0.25f, 0, 1, 0};
        std::vector<const_latent_view> inputs{z.view(), output.view(), previous.view()};
        std::vector<latent_view> outputs{z.view(), previous.view()};
        kernels.linear_combination(inputs, coefficients, outputs);
        std::vector<const_latent_view> with_stitched{output.view(), {}};
        std::vector<float> half{0.5f, 0.5f};
        std::vector<latent_view> averaged{output.view()};
        kernels.stitch_combination({1, axis::w, dtype::f32, parts}, with_stitched, half, averaged);
        std::ranges::fill(half, -1.0f);
        kernels.merge_attention(output.view(), lse.view(), packed.view(), part_lse.view());
        std::ranges::fill(weights, -1.0f);
        std::ranges::fill(coefficients, -1.0f);
    }

    latent z, previous, packed, left, right, output, lse, part_lse;
};

void fill(device_lab& lab, every_kernel& tensors, unsigned seed) {
    std::mt19937 generator(seed);
    for (latent* tensor : tensors.all()) {
        latent host(tensor->view().extents, tensor->view().type);
        kernel_cases::for_each_position(host.view().extents, [&](const auto& at) {
            visit_floating(host.view().type, [&]<class T>() {
                host.view().as<T>()[host.view().offset(at)] =
                    from_float<T>(static_cast<float>(generator() % 4096) / 1024 - 2);
            });
        });
        lab.upload(tensor->view().data, {host.view().data, static_cast<std::size_t>(host.bytes())});
    }
}

std::vector<std::byte> content(device_lab& lab, every_kernel& tensors) {
    std::vector<std::byte> out;
    for (latent* tensor : tensors.all()) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(tensor->bytes()));
        lab.download(bytes, tensor->view().data);
        out.insert(out.end(), bytes.begin(), bytes.end());
    }
    return out;
}

}  // namespace

TEST_CASE("a captured graph does to other inputs what the calls do") {
    device_lab lab;
    every_kernel tensors(lab);
    const auto stream = static_cast<cudaStream_t>(lab.stream().handle);

    fill(lab, tensors, 1);
    cudaGraph_t graph = nullptr;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    tensors.run(lab.kernels());
    must(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t runnable = nullptr;
    must(cudaGraphInstantiate(&runnable, graph, 0));

    for (const unsigned seed : {1u, 2u, 3u}) {
        fill(lab, tensors, seed);
        const std::vector<std::byte> before = content(lab, tensors);
        tensors.run(lab.kernels());
        const std::vector<std::byte> expected = content(lab, tensors);
        CHECK(expected != before);
        fill(lab, tensors, seed);
        must(cudaGraphLaunch(runnable, stream));
        CHECK(content(lab, tensors) == expected);
    }
    must(cudaGraphExecDestroy(runnable));
    must(cudaGraphDestroy(graph));
}

TEST_CASE("calls are ordered on their stream") {
    device_lab lab;
    // A chain that is wrong as soon as one link is overtaken: each adds one, far more than fit in
    // flight at a time.
    latent values({1, 1, 1, 1024, 1024}, dtype::f32, lab.memory());
    std::vector<float> here(1 << 20, 0.0f);
    lab.upload(values.view().data, std::as_bytes(std::span(here)));
    latent ones({1, 1, 1, 1024, 1024}, dtype::f32, lab.memory());
    std::ranges::fill(here, 1.0f);
    lab.upload(ones.view().data, std::as_bytes(std::span(here)));
    const std::array<const_latent_view, 2> inputs{values.view(), ones.view()};
    const std::array<float, 2> coefficients{1, 1};
    const latent_view output = values.view();
    for (int i = 0; i < 500; ++i) {
        lab.kernels().linear_combination(inputs, coefficients, {&output, 1});
    }
    lab.download(std::as_writable_bytes(std::span(here)), values.view().data);
    CHECK(std::ranges::all_of(here, [](float value) { return value == 500; }));
}

// SPDX-License-Identifier: Apache-2.0
// Your own CUDA kernels as the model, a GPU for each rank: LatentParallel over NCCL.
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/philox_noise.hpp>
#include <latpar/cuda/stream.hpp>
#include <latpar/latpar.hpp>
#include <latpar/nccl/communicator.hpp>

#include <algorithm>
#include <iostream>

namespace {

constexpr std::array<latpar::index_t, 5> extents{1, 16, 21, 60, 104};  // [B, C, T, H, W]

/// Stands for your model: a velocity towards a pattern that depends on what lies to the left.
__global__ void predict(const float* z, float sigma, bool conditional, latpar::index_t row,
                        latpar::index_t count, float* out) {
    const latpar::index_t i = latpar::index_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float left = z[i % row == 0 ? i : i - 1];
    const float target = conditional ? tanhf(1.5f * left) : 0.0f;
    out[i] = (z[i] - target) / (sigma + 0.1f);
}

void model(latpar::const_latent_view z, const latpar::step_info& info,
           latpar::latent_view prediction, latpar::stream_ref stream) {
    const latpar::sample_info& now = info.samples[0];
    constexpr unsigned threads = 256;
    const auto blocks = static_cast<unsigned>((z.elements() + threads - 1) / threads);
    predict<<<blocks, threads, 0, static_cast<cudaStream_t>(stream.handle)>>>(
        z.as<float>(), static_cast<float>(now.sigma),
        now.branch == latpar::guidance_branch::conditional, z.extents[4], z.elements(),
        prediction.as<float>());
}

/// Samples on the device that is current; the ranks of `comm` share the work.
latpar::latent sample(latpar::nccl::communicator& comm, const latpar::latent_parallel_plan& plan,
                      const latpar::linear_scheduler& schedule) {
    const latpar::cuda::stream stream;
    const latpar::cuda::kernels kernels;
    latpar::cuda::device_memory memory;
    // Everything that works on latents is told of the kernels and of the memory.
    latpar::latent_parallel denoiser(latpar::guided(model, 4.0, kernels, memory.source()), comm,
                                     plan, kernels, memory.source());
    latpar::loop::serial loop(denoiser, schedule, extents, kernels, latpar::dtype::f32,
                              memory.source());
    const latpar::cuda::philox_noise noise(42);
    loop.start(noise, stream);
    loop.run(noise, stream);
    latpar::latent mine(extents, latpar::dtype::f32, memory.source());
    loop.collect(mine.view(), stream);
    comm.synchronize(stream);  // and not the stream: this hears of ranks that fail

    latpar::latent out(extents);
    latpar::cuda::copy_bytes(out.view().data, mine.view().data, mine.bytes(), stream);
    return out;
}

}  // namespace

int main() try {
    const int devices = latpar::cuda::device_count();
    if (devices == 0) throw latpar::device_error("there is no CUDA device");
    const auto schedule = latpar::schedule::unipc_flow({.steps = 20});
    const auto problem = latpar::latent_problem::of(extents, schedule);
    const auto plan = latpar::plan_latent_parallel(problem, {}, devices);
    std::cout << to_table(plan);

    // With processes, mpi::communicator::world() takes the place of the team.
    latpar::latent video;
    latpar::thread_team(devices).run([&](latpar::thread_communicator& threads) {
        latpar::cuda::set_device(threads.rank());
        auto comm = latpar::nccl::communicator::over(threads.duplicate());
        latpar::latent mine = sample(comm, plan, schedule);
        if (comm.rank() == 0) video = std::move(mine);
    });

    // One GPU makes all the calls in turn.
    latpar::cuda::set_device(0);
    auto alone = latpar::nccl::communicator::over(latpar::self_communicator());
    const latpar::latent expected =
        sample(alone, latpar::plan_latent_parallel(problem, {.parts = devices}, 1), schedule);

    const auto bits = [](const latpar::latent& z) { return std::as_bytes(z.elements<float>()); };
    const bool equal = std::ranges::equal(bits(video), bits(expected));
    std::cout << '\n'
              << devices << " GPUs and their simulation on one "
              << (equal ? "agree in every bit\n" : "differ\n");
    return equal ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}

// SPDX-License-Identifier: Apache-2.0
// Policies captured in CUDA graphs, their messages over NCCL included, and replayed.
#include <latpar/cuda/philox_noise.hpp>
#include <latpar/loop/para_step.hpp>
#include <latpar/loop/serial.hpp>
#include <latpar/mpi/communicator.hpp>
#include <latpar/step/latent_parallel.hpp>

#include <cuda/captured_graph.hpp>
#include <nccl/direct.hpp>
#include <support/catch.hpp>

using namespace latpar;

namespace {

constexpr std::array<index_t, 5> extents{1, 3, 8, 6, 10};

/// NCCL among the processes of the job, each with the device of its number.
nccl::communicator processes_on_devices(
    std::chrono::milliseconds timeout = std::chrono::minutes(1)) {
    auto world = mpi::communicator::world();
    cuda::set_device(world.rank());
    return nccl::communicator::over(std::move(world), {timeout, true});
}

template <class Loop, class Model>
void step(Loop& loop, Model& model, stream_ref stream) {
    const auto next = loop.next_request(stream);
    model(next.z, next.info, next.prediction, stream);
    loop.advance(stream);
}

template <class Schedule>
auto latent_parallel_loop(nccl::communicator& comm, const Schedule& schedule, latent_layout layout,
                          timestep_model model, memory_source source) {
    latent_parallel_options options;
    options.layout = layout;
    const auto plan =
        plan_latent_parallel(latent_problem::of(extents, schedule), options, comm.size());
    return latent_parallel(model, comm, plan, cuda::kernels{}, source);
}

}  // namespace

// Sharded, the latent and what comes in change places at every step: two rounds of the axes.
TEST_CASE("a graph for each axis makes every step of LatentParallel") {
    auto comm = processes_on_devices();
    const linear_scheduler schedule = swinging_schedule(120);
    for (const latent_layout layout : {latent_layout::replicated, latent_layout::sharded}) {
        CAPTURE(name_of(layout));
        const cuda::stream stream;
        cuda::device_memory device;
        auto eager_policy = latent_parallel_loop(comm, schedule, layout, {}, device.source());
        loop::serial eager(eager_policy, schedule, extents, cuda::kernels{}, dtype::f32,
                           device.source());
        cuda::step_scalars scalars(schedule, device.source());
        auto policy = latent_parallel_loop(comm, scalars.schedule(), layout, {scalars.timesteps()},
                                           device.source());
        loop::serial loop(policy, scalars.schedule(), extents, cuda::kernels{}, dtype::f32,
                          device.source());
        const cuda::philox_noise noise(5);
        eager.start(noise, stream);
        loop.start(noise, stream);
        std::vector<captured_graph> graphs;
        const std::size_t count = layout == latent_layout::replicated ? 3 : 6;
        while (graphs.size() < count) {
            graphs.emplace_back(stream, [&] {
                scalars.advance(stream);
                step(loop, policy, stream);
            });
        }
        for (std::size_t i = 0; i < 102; ++i) {
            graphs[i % count].replay();
            step(eager, eager_policy, stream);
        }
        comm.synchronize(stream);
        const std::vector<float> expected = content_of(eager, extents, stream);
        const std::vector<float> replayed = content_of(loop, extents, stream);
        if (comm.rank() == 0) CHECK(replayed == expected);
    }
}

TEST_CASE("a graph of one round makes every round of ParaStep") {
    auto comm = processes_on_devices();
    const index_t degree = comm.size();
    const index_t warm_up = 3;
    const linear_scheduler schedule = swinging_schedule(warm_up + degree * 110);
    const cuda::stream stream;
    cuda::device_memory device;
    loop::para_step_options options;
    options.warm_up = warm_up;
    const auto plan =
        loop::plan_para_step(latent_problem::of(extents, schedule), options, comm.size());
    timestep_model eager_model;
    loop::para_step eager(eager_model, comm, schedule, plan, cuda::kernels{}, device.source());
    cuda::step_scalars scalars(schedule, device.source(), degree, 1, warm_up);
    timestep_model model;
    loop::para_step loop(model, comm, scalars.schedule(), plan, cuda::kernels{}, device.source());
    const cuda::philox_noise noise(5);
    eager.start(noise, stream);
    loop.start(noise, stream);
    const auto round = [&](auto& of, auto& with) {
        const index_t before = of.step();
        while (of.step() == before) step(of, with, stream);
        of.join();
    };
    // The warm-up and the first round, whose reused predictions come from it, are no other's.
    while (loop.step() < warm_up) step(loop, model, stream);
    model.timestep = scalars.timesteps(comm.rank());
    scalars.advance(stream);
    round(loop, model);
    const captured_graph graph(stream, [&] {
        scalars.advance(stream);
        round(loop, model);
    });
    for (int i = 0; i < 100; ++i) graph.replay();
    while (eager.step() < warm_up + degree * 101) {
        if (eager.step() < warm_up) {
            step(eager, eager_model, stream);
        } else {
            round(eager, eager_model);
        }
    }
    comm.synchronize(stream);
    const std::vector<float> expected = content_of(eager, extents, stream);
    CHECK(content_of(loop, extents, stream) == expected);
}

TEST_CASE("a graph of an attention over all ranks serves other queries, keys and values") {
    auto comm = processes_on_devices();
    const auto check = [](auto& ranks) {
        constexpr index_t heads = 6;
        constexpr index_t head_dim = 16;
        cuda::stream stream;
        cuda::device_memory memory;
        const layer::ulysses_plan plan = layer::plan_ulysses(
            {heads, heads, head_dim}, {layer::even_tokens(71, ranks.size())}, ranks.size());
        const std::array<index_t, 3> shape{plan.tokens_of(ranks.rank()), heads, head_dim};
        std::array<tensor<3>, 4> tensors;
        for (tensor<3>& t : tensors) t = tensor<3>(shape, dtype::f32, memory.source());
        layer::ulysses policy(mixing_attention{}, ranks, plan, cuda::kernels{}, memory.source());
        const auto attend = [&] {
            policy(tensors[0].view(), tensors[1].view(), tensors[2].view(), tensors[3].view(), {},
                   stream);
        };
        const auto content = [&] {
            std::vector<float> out(static_cast<std::size_t>(tensors[3].view().elements()));
            cuda::copy_bytes(out.data(), tensors[3].view().data, tensors[3].bytes(), stream);
            return out;
        };
        std::mt19937 random(static_cast<unsigned>(ranks.rank()));
        std::vector<float> values(static_cast<std::size_t>(tensors[0].view().elements()));
        const auto fill = [&] {
            for (std::size_t i = 0; i < 3; ++i) {
                for (float& value : values) value = static_cast<float>(random() % 4096) / 1024;
                cuda::copy_bytes(tensors[i].view().data, values.data(), tensors[i].bytes(), stream);
            }
        };
        fill();
        attend();  // what is loaded or made at the first call is not captured
        const captured_graph graph(stream, attend);
        int different = 0;
        for (int i = 0; i < 100; ++i) {
            fill();
            attend();
            const std::vector<float> expected = content();
            cuda::copy_bytes(tensors[3].view().data, tensors[0].view().data, tensors[3].bytes(),
                             stream);
            graph.replay();
            different += content() != expected;
        }
        return different;
    };
    auto direct = comm.duplicate();
    CHECK(check(direct) == 0);
    messages_only by_messages(comm.duplicate());
    CHECK(check(by_messages) == 0);
}

TEST_CASE("what is left waiting beside a graph is given up, and the device is free") {
    static_cast<void>(processes_on_devices());  // NCCL is loaded with the first, at its leisure
    auto comm = processes_on_devices(std::chrono::seconds(10));
    const std::array<cuda::stream, 2> streams;
    const auto capture = [&](const cuda::stream& stream, const auto& exchanging) {
        exchanging();
        const captured_graph graph(stream, exchanging);
        graph.replay();
    };
    {
        // Given back last: that waits for the device, and so for what the communicator ends.
        cuda::device_memory memory;
        tensor<1> numbers({2}, dtype::f32, memory.source());
        std::array beside{background(comm), background(comm)};
        const int peer = 1 - comm.rank();
        const std::array sends{
            send_op{numbers.view().data, 1, dtype::f32, peer, memory_space::cuda}};
        const std::array recvs{
            recv_op{numbers.view().data + 4, 1, dtype::f32, peer, memory_space::cuda}};
        for (std::size_t i = 0; i < 2; ++i) {
            capture(streams[i], [&] { exchange(beside[i], sends, recvs, streams[i]); });
            beside[i].synchronize(streams[i]);
        }
        // Nobody sends that, and both leave. No graph is made or given back while a stream waits: a
        // tool that watches the device waits for it then.
        for (std::size_t i = 0; i < 2; ++i) {
            if (comm.rank() == 0) exchange(beside[i], {}, recvs, streams[i]);
        }
    }
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(static_cast<int>(comm.control_all_gather("left").size()) == comm.size());
    // Memory that is shared is kept until all have heard.
    const auto share = [&] {
        targets t(comm);
        capture(t.stream, [&] {
            exchange(t.beside, std::array{t.send(0)}, std::array{t.recv(0)}, t.stream);
        });
        t.beside.synchronize(t.stream);
        if (comm.rank() == 0) {
            exchange(t.beside, std::array{t.send(1)}, {}, t.stream);
        } else {
            expect_throws([&] { static_cast<void>(t.beside.control_all_gather("waiting")); },
                          "shared memory was given up while others used it");
        }
    };
    CHECK_NOTHROW(guarded(comm, share));
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

// SPDX-License-Identifier: Apache-2.0
// What ranks of NCCL write to each other's memory, whether they are threads or processes.
#pragma once

#include <latpar/comm/background.hpp>
#include <latpar/comm/detail/shared_buffer.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/philox_noise.hpp>
#include <latpar/cuda/stream.hpp>
#include <latpar/layer/ring.hpp>
#include <latpar/layer/ulysses.hpp>
#include <latpar/loop/serial.hpp>
#include <latpar/nccl/communicator.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/step/latent_parallel.hpp>

#include <cuda_runtime_api.h>
#include <support/expect.hpp>
#include <support/messages_only.hpp>

#include <chrono>
#include <random>
#include <thread>

/// An attention that gives back its queries times a half plus its values: enough to see that each
/// row and head comes from where it should.
struct mixing_attention {
    void operator()(latpar::layer::const_heads_view q, latpar::layer::const_heads_view,
                    latpar::layer::const_heads_view v, latpar::layer::heads_view out,
                    latpar::layer::lse_view, latpar::stream_ref stream) const {
        const auto as_latent = [](const auto& view) {
            return latpar::layer::detail::as_latent(view);
        };
        const std::array<latpar::const_latent_view, 2> inputs{as_latent(q), as_latent(v)};
        const std::array<latpar::latent_view, 1> outputs{as_latent(out)};
        latpar::cuda::kernels{}.linear_combination(inputs, std::array{0.5f, 1.0f}, outputs, stream);
    }
};

/// Rounds of Ulysses on random heads, with `comm`: the output of each.
template <class Comm>
std::vector<std::vector<float>> rounds_of_ulysses(Comm& comm, const std::vector<float>& values,
                                                  latpar::index_t tokens, latpar::index_t heads,
                                                  latpar::index_t head_dim) {
    using namespace latpar;
    cuda::stream stream;
    cuda::device_memory memory;
    const layer::ulysses_plan plan = layer::plan_ulysses(
        {heads, heads, head_dim}, {layer::even_tokens(tokens, comm.size())}, comm.size());
    const std::array<index_t, 3> extents{plan.tokens_of(comm.rank()), heads, head_dim};
    std::array<tensor<3>, 4> tensors;
    for (tensor<3>& t : tensors) t = tensor<3>(extents, dtype::f32, memory.source());
    layer::ulysses policy(mixing_attention{}, comm, plan, cuda::kernels{}, memory.source());
    std::vector<std::vector<float>> out;
    for (std::size_t round = 0; round < 10; ++round) {
        for (std::size_t i = 0; i < 3; ++i) {
            cuda::copy_bytes(tensors[i].view().data, values.data() + 101 * (3 * round + i),
                             tensors[i].bytes(), stream);
        }
        policy(tensors[0].view(), tensors[1].view(), tensors[2].view(), tensors[3].view(), {},
               stream);
        auto& result = out.emplace_back(static_cast<std::size_t>(tensors[3].view().elements()));
        cuda::copy_bytes(result.data(), tensors[3].view().data, tensors[3].bytes(), stream);
    }
    return out;
}

/// Memory that each rank shares is written by all; Ulysses gives the same as by messages.
inline void check_direct(latpar::nccl::communicator& comm) {
    using namespace latpar;
    const auto ranks = static_cast<std::size_t>(comm.size());
    const auto self = static_cast<std::size_t>(comm.rank());
    {
        cuda::stream stream;
        cuda::device_memory memory;
        buffer mine(static_cast<index_t>(64 * ranks), memory.source());
        const peer_memory peers = comm.share(mine.data(), mine.bytes(), memory_space::cuda);
        EXPECT(peers.of.size() == ranks);
        for (std::size_t round = 0; round < 20; ++round) {
            for (std::size_t peer = 0; peer < ranks; ++peer) {
                const std::vector<std::uint8_t> bytes(
                    64, static_cast<std::uint8_t>(round + 7 * peer + self));
                cuda::copy_bytes(peers.of[peer] + 64 * self, bytes.data(), 64, stream);
            }
            comm.meet(stream);
            std::vector<std::uint8_t> got(64 * ranks);
            cuda::copy_bytes(got.data(), mine.data(), mine.bytes(), stream);
            for (std::size_t i = 0; i < got.size(); ++i) {
                EXPECT(got[i] == static_cast<std::uint8_t>(round + 7 * self + i / 64));
            }
            comm.meet(stream);
        }
    }
    EXPECT(comm.share(nullptr, 0, memory_space::cuda).empty());
    std::mt19937 random(static_cast<unsigned>(3 + self));
    std::vector<float> values(8000 + 101 * 30 + 4096);
    for (float& value : values) value = static_cast<float>(random() % 4096) / 1024;
    metered direct(comm.duplicate());
    metered by_messages(messages_only(comm.duplicate()));
    for (const index_t heads : {2, 7}) {
        // Of five floats, the rows of a rank's heads begin and end within sectors of the peer's.
        for (const index_t head_dim : {16, 5}) {
            EXPECT(rounds_of_ulysses(direct, values, 71, heads, head_dim) ==
                   rounds_of_ulysses(by_messages, values, 71, heads, head_dim));
        }
    }
    EXPECT(direct.account().total() == by_messages.account().total());
    EXPECT(direct.account().total().bytes_sent > 0);
}

/// A rank fails while what both have queued is still running: nobody writes to memory that is gone,
/// which would be an error of the device, for good. `make(attend, shape, sequence, source)` makes
/// the policy that fails; a rank that is late lets the others queue all that they can before.
template <class Make>
void check_failing(latpar::nccl::communicator& comm, int failing, bool is_late, const Make& make) {
    using namespace latpar;
    // Large enough that the device is far behind the host.
    constexpr index_t tokens = 20000;
    constexpr index_t heads = 8;
    constexpr index_t head_dim = 128;
    cuda::stream stream;
    cuda::device_memory memory;
    const layer::attention_shape shape{heads, heads, head_dim};
    const layer::token_sequence sequence{
        std::vector<index_t>(static_cast<std::size_t>(comm.size()), tokens)};
    std::array<tensor<3>, 4> tensors;
    for (tensor<3>& t : tensors) {
        t = tensor<3>({tokens, heads, head_dim}, dtype::f32, memory.source());
    }
    int calls = 0;
    const auto attend = [&](auto q, auto k, auto v, auto out, auto lse, auto on) {
        if (comm.rank() == failing && ++calls == 4) {
            // Who runs out of memory waits for the device; the peers queue more meanwhile.
            if (is_late) std::this_thread::sleep_for(std::chrono::milliseconds(300));
            throw std::runtime_error("no memory left");
        }
        mixing_attention{}(q, k, v, out, lse, on);
    };
    // The policy ends when the exception has been caught.
    auto policy = make(attend, shape, sequence, memory.source());
    expect_throws(
        [&] {
            for (;;) {
                policy(tensors[0].view(), tensors[1].view(), tensors[2].view(), tensors[3].view(),
                       {}, stream);
            }
        },
        "no memory left");
    cuda::synchronize(stream);
    cuda::stream other;
    const std::vector<float> values(100, 3.0f);
    std::vector<float> back(100);
    buffer there(400, memory.source());
    cuda::copy_bytes(there.data(), values.data(), 400, other);
    cuda::copy_bytes(back.data(), there.data(), 400, other);
    EXPECT(back == values);
}

/// The same with Ulysses, whose kernels write, and with a ring, whose messages are written.
inline void check_failing_direct(latpar::nccl::communicator& comm, int failing, bool is_late,
                                 bool is_ring) {
    using namespace latpar;
    const int ranks = comm.size();
    if (is_ring) {
        check_failing(comm, failing, is_late,
                      [&](auto attend, auto shape, auto sequence, auto source) {
                          return layer::ring(attend, comm, layer::plan_ring(shape, sequence, ranks),
                                             cuda::kernels{}, source);
                      });
    } else {
        check_failing(
            comm, failing, is_late, [&](auto attend, auto shape, auto sequence, auto source) {
                return layer::ulysses(attend, comm, layer::plan_ulysses(shape, sequence, ranks),
                                      cuda::kernels{}, source);
            });
    }
}

/// A rank fails while another has more to queue behind its messages than a stream takes: a host
/// that is held up there would hear of nothing.
inline void check_held_up(latpar::nccl::communicator& comm, int failing) {
    using namespace latpar;
    cuda::stream stream;
    cuda::device_memory memory;
    tensor<1> scratch({1024}, dtype::u8, memory.source());
    int calls = 0;
    const auto model = [&](const_latent_view z, const step_info&, latent_view prediction,
                           stream_ref on) {
        if (comm.rank() == failing && ++calls == 3) {
            comm.synchronize(on);
            std::this_thread::sleep_for(std::chrono::milliseconds(300));
            throw std::runtime_error("no memory left");
        }
        for (int i = 0; i < 5000; ++i) {
            static_cast<void>(cudaMemsetAsync(scratch.view().data, i, 1024,
                                              static_cast<cudaStream_t>(on.handle)));
        }
        cuda::kernels{}.copy(z, prediction, on);
    };
    const linear_scheduler schedule = schedule::by_name("unipc_flow", 8);
    const std::array<index_t, 5> extents{1, 3, 8, 6, 10};
    const auto plan = plan_latent_parallel(latent_problem::of(extents, schedule), {}, comm.size());
    expect_throws(
        [&] {
            latent_parallel policy(model, comm, plan, cuda::kernels{}, memory.source());
            loop::serial loop(policy, schedule, extents, cuda::kernels{}, dtype::f32,
                              memory.source());
            const cuda::philox_noise noise(1);
            loop.start(noise, stream);
            loop.run(noise, stream);
        },
        "no memory left");
    cuda::synchronize(stream);
}

/// Memory of two ranks, in three parts, that messages beside computing go to.
struct targets {
    static constexpr latpar::index_t count = 3 << 20;
    static constexpr latpar::index_t bytes = 4 * count;

    explicit targets(latpar::nccl::communicator& comm)
        : beside(latpar::background(comm)),
          peer(1 - comm.rank()),
          values(3 * bytes, memory.source()) {
        mine.reserve([](int) { return 3 * bytes; }, memory.source(), beside);
        EXPECT(mine.is_shared());
    }
    /// Sets what is sent as a part to one number.
    void set(int part, float value) {
        const std::vector<float> numbers(static_cast<std::size_t>(count), value);
        latpar::cuda::copy_bytes(values.data() + part * bytes, numbers.data(), bytes, stream);
    }
    [[nodiscard]] latpar::send_op send(int part, bool to_target = true) const {
        return {values.data() + part * bytes,
                count,
                latpar::dtype::f32,
                peer,
                latpar::memory_space::cuda,
                to_target ? mine.at(peer, mine.data() + part * bytes) : nullptr};
    }
    [[nodiscard]] latpar::recv_op recv(int part, bool to_target = true) const {
        return {mine.data() + part * bytes, count,    latpar::dtype::f32, peer,
                latpar::memory_space::cuda, to_target};
    }
    /// That a part of memory has one number throughout.
    void expect(const std::byte* from, float value) {
        beside.synchronize(stream);
        std::vector<float> numbers(static_cast<std::size_t>(count));
        latpar::cuda::copy_bytes(numbers.data(), from, bytes, stream);
        EXPECT(numbers == std::vector<float>(numbers.size(), value));
    }
    void expect(int part, float value) { expect(mine.data() + part * bytes, value); }

    latpar::nccl::communicator beside;
    int peer;
    latpar::cuda::stream stream;
    latpar::cuda::device_memory memory;
    latpar::buffer values;
    latpar::detail::shared_buffer mine;
};

/// Messages with targets arrive, among others, however they are grouped, and none before its
/// receiver has come.
inline void check_targets(latpar::nccl::communicator& comm) {
    using namespace latpar;
    targets t(comm);
    const auto own = static_cast<float>(comm.rank());
    const float other = 1 - own;
    for (int round = 0; round < 5; ++round) {
        const auto number = static_cast<float>(10 * round);
        for (const int part : {0, 1, 2}) t.set(part, number + own + static_cast<float>(2 * part));
        // Both ways at once, two to their targets and then one without.
        exchange(t.beside, std::array{t.send(0), t.send(1)}, std::array{t.recv(0), t.recv(1)},
                 t.stream);
        exchange(t.beside, std::array{t.send(2, false)}, std::array{t.recv(2, false)}, t.stream);
        for (const int part : {0, 1, 2}) {
            t.expect(part, number + other + static_cast<float>(2 * part));
        }
        // Sent together and received apart, and the other way round.
        for (const int part : {0, 1}) t.set(part, -number - own - static_cast<float>(part));
        for (const int sender : {0, 1}) {
            if (comm.rank() == sender) {
                exchange(t.beside, std::array{t.send(0), t.send(1)}, {}, t.stream);
                exchange(t.beside, std::array{t.send(0)}, {}, t.stream);
                exchange(t.beside, std::array{t.send(1)}, {}, t.stream);
            } else {
                exchange(t.beside, {}, std::array{t.recv(0)}, t.stream);
                exchange(t.beside, {}, std::array{t.recv(1)}, t.stream);
                exchange(t.beside, {}, std::array{t.recv(0), t.recv(1)}, t.stream);
            }
        }
        for (const int part : {0, 1}) t.expect(part, -number - other - static_cast<float>(part));
        // The receiver's stream still works with what it has.
        t.set(0, number + own);
        if (comm.rank() == 0) {
            exchange(t.beside, std::array{t.send(0)}, {}, t.stream);
            t.beside.synchronize(t.stream);
        } else {
            cuda::device_memory memory;
            tensor<1> busy({index_t{1} << 30}, dtype::u8, memory.source());
            tensor<1> kept({targets::bytes}, dtype::u8, memory.source());
            const auto native = static_cast<cudaStream_t>(t.stream.ref().handle);
            for (int i = 0; i < 20; ++i) {
                static_cast<void>(
                    cudaMemsetAsync(busy.view().data, i, std::size_t{1} << 30, native));
            }
            static_cast<void>(cudaMemcpyAsync(kept.view().data, t.mine.data(), targets::bytes,
                                              cudaMemcpyDeviceToDevice, native));
            exchange(t.beside, {}, std::array{t.recv(0)}, t.stream);
            t.expect(kept.view().data, -number - other);
            t.expect(0, number + other);
        }
    }
}

/// Who waits for the receiver of a message with a target, or for its sender, hears of an abort, and
/// the device is free.
inline void check_abandoned_targets(latpar::nccl::communicator& comm, bool is_sent) {
    using namespace latpar;
    targets t(comm);
    if (comm.rank() == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        t.beside.abort("no more");
    } else {
        expect_throws(
            [&] {
                if (is_sent) exchange(t.beside, std::array{t.send(0)}, {}, t.stream);
                if (!is_sent) exchange(t.beside, {}, std::array{t.recv(0)}, t.stream);
                t.beside.synchronize(t.stream);
            },
            "no more");
    }
    cuda::synchronize(t.stream);
}

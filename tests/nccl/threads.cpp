// SPDX-License-Identifier: Apache-2.0
// nccl::communicator with a thread and a device for each rank.
#include <latpar/comm/background.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>
#include <latpar/nccl/collectives.hpp>
#include <latpar/nccl/communicator.hpp>

#include <comm/conformance.hpp>
#include <cuda/through_device.hpp>
#include <cuda_runtime_api.h>
#include <nccl/direct.hpp>
#include <support/expect.hpp>

#include <numeric>
#include <thread>

using namespace latpar;

static_assert(communicator<nccl::communicator>);
static_assert(communicator<metered<nccl::communicator>>);

namespace {

/// A communicator over NCCL on every rank of a team, with the device of its number.
template <class F>
void on_devices(int ranks, const nccl::options& wanted, F&& f) {
    thread_team(ranks).run([&](thread_communicator& threads) {
        cuda::set_device(threads.rank());
        auto comm = nccl::communicator::over(threads.duplicate(), wanted);
        f(comm);
    });
}

struct devices {
    int ranks = 2;
    nccl::options wanted{std::chrono::minutes(1)};

    template <class F>
    std::vector<std::string> run(F f) {
        std::vector<std::string> verdicts(static_cast<std::size_t>(ranks));
        on_devices(ranks, wanted, [&](nccl::communicator& comm) {
            const auto rank = static_cast<std::size_t>(comm.rank());
            through_device through(std::move(comm));
            verdicts[rank] = f(through);
        });
        return verdicts;
    }
};

std::vector<float> numbers(std::size_t count, float first) {
    std::vector<float> out(count);
    std::iota(out.begin(), out.end(), first);
    return out;
}

/// Floats in device memory.
class device_floats {
public:
    device_floats(std::span<const float> values, stream_ref stream)
        : memory_({std::ssize(values)}, dtype::f32, resource_.source()) {
        cuda::copy_bytes(memory_.view().data, values.data(), memory_.bytes(), stream);
    }
    [[nodiscard]] basic_view<std::byte, 1> view() { return memory_.view(); }
    [[nodiscard]] std::vector<float> values(stream_ref stream) {
        std::vector<float> out(static_cast<std::size_t>(memory_.view().extents[0]));
        cuda::copy_bytes(out.data(), memory_.view().data, memory_.bytes(), stream);
        return out;
    }
    [[nodiscard]] send_op to(int peer) { return {view().data, count(), dtype::f32, peer, space}; }
    [[nodiscard]] recv_op from(int peer) { return {view().data, count(), dtype::f32, peer, space}; }

private:
    static constexpr memory_space space = memory_space::cuda;
    [[nodiscard]] index_t count() { return view().extents[0]; }

    cuda::device_memory resource_;
    tensor<1> memory_;
};

/// So many exchanges with the other rank that the host waits for the first, and for the last.
void exchange_often(nccl::communicator& comm, device_floats& out, device_floats& in,
                    stream_ref stream) {
    const int peer = 1 - comm.rank();
    for (int i = 0; i < 20; ++i) {
        exchange(comm, std::array{out.to(peer)}, std::array{in.from(peer)}, stream);
    }
    auto last = comm.start_exchange(std::array{out.to(peer)}, std::array{in.from(peer)}, stream);
    wait_on_host(last);
}

}  // namespace

TEST_CASE("NCCL on threads conforms") {
    devices harness;
    conformance::run(harness, {.overtakes = false, .tells_mismatches = false});
}

TEST_CASE("host memory travels over the bootstrap") {
    on_devices(2, {}, [](nccl::communicator& comm) {
        EXPECT(all_reduce(comm, comm.rank() + 1, reduce_op::sum) == 3);
        EXPECT(conformance::every_pair(comm) == "");
        // One exchange with a message of each kind.
        cuda::stream stream;
        device_floats out(numbers(1000, 1.0f + static_cast<float>(comm.rank())), stream);
        device_floats in(numbers(1000, 0), stream);
        const int peer = 1 - comm.rank();
        const int told = 40 + comm.rank();
        int heard = 0;
        exchange(comm, std::array{out.to(peer), send_op{&told, 1, dtype::i32, peer}},
                 std::array{in.from(peer), recv_op{&heard, 1, dtype::i32, peer}}, stream);
        EXPECT(heard == 40 + peer);
        EXPECT(in.values(stream) == numbers(1000, 1.0f + static_cast<float>(peer)));
    });
}

TEST_CASE("a message over NCCL may exceed 2^31 bytes") {
    devices harness;
    for (const std::string& verdict :
         harness.run([](auto& comm) { return conformance::beyond_two_gib(comm); })) {
        CHECK(verdict == "");
    }
}

TEST_CASE("ranks that share a device are refused on all, with what to do") {
    thread_team(2).run([](thread_communicator& threads) {
        cuda::set_device(0);
        for (const char* part : {"ranks 0 and 1 both have GPU", "cuda::staged"}) {
            expect_throws([&] { static_cast<void>(nccl::communicator::over(threads.duplicate())); },
                          part);
        }
        EXPECT(conformance::every_pair(threads) == "");
    });
}

TEST_CASE("ranks that differ in their options are refused") {
    thread_team(2).run([](thread_communicator& threads) {
        cuda::set_device(0);
        nccl::options wanted;
        if (threads.rank() == 1) wanted.timeout = std::chrono::seconds(7);
        expect_throws(
            [&] { static_cast<void>(nccl::communicator::over(threads.duplicate(), wanted)); },
            "rank 0: 600000 ms; rank 1: 7000 ms");
    });
}

TEST_CASE("messages to the rank itself go into one exchange, or are refused") {
    on_devices(1, {}, [](nccl::communicator& comm) {
        cuda::stream stream;
        device_floats out(numbers(100, 5), stream);
        device_floats in(numbers(100, 0), stream);
        exchange(comm, std::array{out.to(0)}, std::array{in.from(0)}, stream);
        EXPECT(in.values(stream) == numbers(100, 5));
        expect_throws([&] { static_cast<void>(comm.start_exchange({}, std::array{in.from(0)})); },
                      "both go into the same");
    });
}

TEST_CASE("an exchange comes between what is queued before and after it, without the host") {
    on_devices(2, {}, [](nccl::communicator& comm) {
        constexpr std::size_t count = 1 << 20;
        cuda::stream stream;
        device_floats value(numbers(count, static_cast<float>(comm.rank())), stream);
        device_floats in(numbers(count, 0), stream);
        const int peer = 1 - comm.rank();
        // Each round sends what the round before received.
        for (int round = 0; round < 100; ++round) {
            exchange(comm, std::array{value.to(peer)}, std::array{in.from(peer)}, stream);
            cuda::copy_bytes(value.view().data, in.view().data, value.view().bytes(), stream);
        }
        comm.synchronize(stream);
        EXPECT(value.values(stream) == numbers(count, static_cast<float>(comm.rank())));
    });
}

TEST_CASE("exchanges go on beside a capture that has none of them") {
    on_devices(2, {}, [](nccl::communicator& comm) {
        cuda::stream stream;
        cuda::stream captured;
        const int peer = 1 - comm.rank();
        device_floats out(numbers(1000, static_cast<float>(comm.rank())), stream);
        device_floats in(numbers(1000, 0), stream);
        device_floats other(numbers(1000, 9), stream);
        const auto native = static_cast<cudaStream_t>(captured.ref().handle);
        EXPECT(cudaStreamBeginCapture(native, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
        EXPECT(cudaMemsetAsync(other.view().data, 0, 4000, native) == cudaSuccess);
        exchange_often(comm, out, in, stream);
        cudaGraph_t graph = nullptr;
        EXPECT(cudaStreamEndCapture(native, &graph) == cudaSuccess);
        std::size_t nodes = 0;
        EXPECT(cudaGraphGetNodes(graph, nullptr, &nodes) == cudaSuccess);
        EXPECT(nodes == 1);
        EXPECT(cudaGraphDestroy(graph) == cudaSuccess);
        EXPECT(in.values(stream) == numbers(1000, static_cast<float>(peer)));
        EXPECT(other.values(stream) == numbers(1000, 9));
    });
}

TEST_CASE("the longest timeout there is never comes") {
    on_devices(2, {std::chrono::milliseconds::max()}, [](nccl::communicator& comm) {
        cuda::stream stream;
        const int peer = 1 - comm.rank();
        device_floats out(numbers(1000, static_cast<float>(comm.rank())), stream);
        device_floats in(numbers(1000, 0), stream);
        exchange_often(comm, out, in, stream);
        comm.synchronize(stream);
        EXPECT(in.values(stream) == numbers(1000, static_cast<float>(peer)));
    });
}

TEST_CASE("synchronize hears of an abort while the device waits for a peer") {
    on_devices(2, {}, [](nccl::communicator& comm) {
        cuda::stream stream;
        device_floats in(numbers(1000, 0), stream);
        if (comm.rank() == 1) {
            comm.abort("the model is gone");
            return;
        }
        expect_throws(
            [&] {
                exchange(comm, {}, std::array{in.from(1)}, stream);
                comm.synchronize(stream);
            },
            "aborted by rank 1 of 2: the model is gone");
        cuda::synchronize(stream);  // nothing is left that waits
    });
}

TEST_CASE("synchronize gives up in time, and all ranks hear of it") {
    on_devices(2, {std::chrono::milliseconds(3000)}, [](nccl::communicator& comm) {
        cuda::stream stream;
        device_floats in(numbers(1000, 0), stream);
        const std::string text = "the device of rank 0 was not done after 3000 ms";
        if (comm.rank() == 0) {
            exchange(comm, {}, std::array{in.from(1)}, stream);
            expect_throws([&] { comm.synchronize(stream); }, text);
            cuda::synchronize(stream);
        } else {
            expect_throws([&] { static_cast<void>(comm.control_all_gather("waiting")); }, text);
        }
    });
}

TEST_CASE("the host gives up on an exchange in time, and where too many are ahead of it") {
    const nccl::options brief{std::chrono::milliseconds(5000)};
    for (const bool waits : {true, false}) {
        on_devices(2, brief, [&](nccl::communicator& comm) {
            cuda::stream stream;
            device_floats in(numbers(1000, 0), stream);
            const std::string text = "an exchange of rank 0 was not done after 5000 ms";
            if (comm.rank() == 1) {
                expect_throws([&] { static_cast<void>(comm.control_all_gather("waiting")); }, text);
                return;
            }
            int started = 0;
            expect_throws(
                [&] {
                    for (;;) {
                        auto coming = comm.start_exchange({}, std::array{in.from(1)}, stream);
                        ++started;
                        if (waits) {
                            const auto soon =
                                std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
                            EXPECT(!coming.wait_until(soon));
                            wait_on_host(coming);
                        } else {
                            coming.wait();
                        }
                    }
                },
                text);
            EXPECT(started == (waits ? 1 : 17));
            cuda::synchronize(stream);
        });
    }
}

TEST_CASE("NCCL's own collectives give what latpar's do") {
    on_devices(2, {}, [](nccl::communicator& comm) {
        cuda::stream stream;
        const auto rank = static_cast<float>(comm.rank());
        device_floats mine(numbers(1001, rank * 1001), stream);
        device_floats all(numbers(2002, -1), stream);
        all_gather(comm, elements(mine.view()), all.view(), stream);
        EXPECT(all.values(stream) == numbers(2002, 0));
        broadcast(comm, mine.view(), 1, stream);
        EXPECT(mine.values(stream) == numbers(1001, 1001));
        device_floats values(std::array{1.0f + rank, -rank}, stream);
        all_reduce(comm, values.view(), reduce_op::sum, stream);
        EXPECT(values.values(stream) == std::vector<float>{3, -1});
        all_reduce(comm, values.view(), reduce_op::max, stream);
        EXPECT(values.values(stream) == std::vector<float>{3, -1});
        // Host memory has latpar's.
        std::vector<int> ranks(2);
        all_gather(comm, std::array{comm.rank()}, ranks);
        EXPECT(ranks == std::vector<int>{0, 1});
    });
}

TEST_CASE("an NCCL communicator that exists is taken over") {
    thread_team(2).run([](thread_communicator& threads) {
        cuda::set_device(threads.rank());
        ncclUniqueId id{};
        if (threads.rank() == 0) ncclGetUniqueId(&id);
        broadcast(threads, std::span(reinterpret_cast<std::uint8_t*>(&id), sizeof id), 0);
        ncclComm_t handle = nullptr;
        EXPECT(ncclCommInitRank(&handle, 2, id, threads.rank()) == ncclSuccess);
        auto comm = nccl::communicator::adopt(handle, threads.duplicate());
        EXPECT(comm.handle() == handle);
        through_device through(std::move(comm));
        EXPECT(conformance::uneven_sizes(through) == "");
    });
}

TEST_CASE("bytes over NCCL are metered as they are elsewhere") {
    on_devices(2, {}, [](nccl::communicator& inner) {
        metered comm(std::move(inner));
        cuda::stream stream;
        device_floats out(numbers(250, 0), stream);
        device_floats in(numbers(250, 0), stream);
        const int peer = 1 - comm.rank();
        exchange(comm, std::array{out.to(peer)}, std::array{in.from(peer)}, stream);
        cuda::synchronize(stream);
        EXPECT(comm.account().total().bytes_sent == 1000);
        EXPECT(comm.account().total().bytes_received == 1000);
    });
}

TEST_CASE("GPUs write to each other's memory, and Ulysses does") {
    on_devices(2, {std::chrono::minutes(1)}, [](nccl::communicator& comm) { check_direct(comm); });
}

TEST_CASE("a rank that fails leaves nobody writing to memory that is gone") {
    for (int round = 0; round < 8; ++round) {
        on_devices(2, {}, [&](nccl::communicator& comm) {
            check_failing_direct(comm, round % 2, round / 2 % 2 == 1, round > 3);
        });
    }
}

TEST_CASE("a rank hears of a failure, however much it has to queue behind its messages") {
    for (const int failing : {0, 1}) {
        on_devices(2, {}, [&](nccl::communicator& comm) { check_held_up(comm, failing); });
    }
}

TEST_CASE("messages beside computing arrive, however they are grouped") {
    // Beyond what NCCL keeps for a receiver that has not come yet.
    constexpr std::size_t large = std::size_t{12} << 20;
    on_devices(2, {std::chrono::minutes(1)}, [](nccl::communicator& comm) {
        // More streams than a device has queues, so that waiting must not hold up what others do.
        std::vector<nccl::communicator> idle;
        for (int i = 0; i < 8; ++i) idle.push_back(comm.duplicate());
        auto there = background(comm);
        auto back = background(comm);
        cuda::stream stream;
        const int peer = 1 - comm.rank();
        device_floats first(numbers(large, 1.0f + static_cast<float>(comm.rank())), stream);
        device_floats second(numbers(1000, 3.0f + static_cast<float>(comm.rank())), stream);
        device_floats got_first(numbers(large, 0), stream);
        device_floats got_second(numbers(1000, 0), stream);
        const auto check = [&] {
            there.synchronize(stream);
            EXPECT(got_first.values(stream) == numbers(large, 1.0f + static_cast<float>(peer)));
            EXPECT(got_second.values(stream) == numbers(1000, 3.0f + static_cast<float>(peer)));
        };
        for (int round = 0; round < 3; ++round) {
            // Two messages in two exchanges, received in one; each rank sends once and receives once.
            for (const int sender : {0, 1}) {
                if (comm.rank() == sender) {
                    exchange(there, std::array{first.to(peer)}, {}, stream);
                    exchange(there, std::array{second.to(peer)}, {}, stream);
                } else {
                    exchange(there, {}, std::array{got_first.from(peer), got_second.from(peer)},
                             stream);
                }
            }
            check();
            // Both at once, among those that only receive.
            exchange(there, std::array{second.to(peer)}, std::array{got_second.from(peer)}, stream);
            // A receive that is posted before the send that it depends on, as a pipeline's first
            // stage posts it.
            if (comm.rank() == 0) {
                auto coming = back.start_exchange({}, std::array{got_first.from(1)}, stream);
                exchange(there, std::array{second.to(1)}, {}, stream);
                coming.wait();
            } else {
                exchange(there, {}, std::array{got_second.from(0)}, stream);
                exchange(back, std::array{first.to(0)}, {}, stream);
            }
            check();
        }
    });
}

TEST_CASE("what waits for a sender beside computing ends with an abort, and the device is free") {
    on_devices(2, {}, [](nccl::communicator& comm) {
        auto beside = background(comm);
        cuda::stream stream;
        device_floats first(numbers(1000, 0), stream);
        device_floats second(numbers(1000, 0), stream);
        if (comm.rank() == 0) {
            exchange(beside, std::array{first.to(1)}, {}, stream);
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            beside.abort("no more");
        } else {
            expect_throws(
                [&] {
                    exchange(beside, {}, std::array{first.from(0)}, stream);
                    exchange(beside, {}, std::array{second.from(0)}, stream);
                    beside.synchronize(stream);
                },
                "no more");
        }
        cuda::synchronize(stream);
    });
}

TEST_CASE("messages beside computing are written to where the receiver has them") {
    on_devices(2, {std::chrono::minutes(1)}, [](nccl::communicator& comm) { check_targets(comm); });
    // By messages alone nothing is shared, and they arrive all the same.
    on_devices(2, {std::chrono::minutes(1), false}, [](nccl::communicator& comm) {
        cuda::device_memory memory;
        latpar::detail::shared_buffer mine;
        mine.reserve([](int) { return 8; }, memory.source(), comm);
        EXPECT(!mine.is_shared() && mine.at(1 - comm.rank(), mine.data()) == nullptr);
    });
}

TEST_CASE("what waits to be written beside computing ends with an abort") {
    // Not what is sent, which NCCL may keep.
    on_devices(2, {}, [](nccl::communicator& comm) { check_abandoned_targets(comm, false); });
}

TEST_CASE("a capture by ranks that share a process is refused, with what to do") {
    on_devices(2, {}, [](nccl::communicator& comm) {
        cuda::stream stream;
        device_floats values(numbers(10, 1), stream);
        const auto native = static_cast<cudaStream_t>(stream.ref().handle);
        EXPECT(cudaStreamBeginCapture(native, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
        expect_throws([&] { exchange(comm, std::array{values.to(1 - comm.rank())}, {}, stream); },
                      "give each rank a process of its own");
        cudaGraph_t graph = nullptr;
        EXPECT(cudaStreamEndCapture(native, &graph) == cudaSuccess);
        EXPECT(cudaGraphDestroy(graph) == cudaSuccess);
    });
}

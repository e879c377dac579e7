// SPDX-License-Identifier: Apache-2.0
// cuda::staged: the conformance suite through device memory, and what only staging can get wrong.
#include <latpar/comm/any_communicator.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/cuda/staged.hpp>

#include <comm/conformance.hpp>
#include <comm/threads.hpp>
#include <cuda/device_lab.hpp>
#include <cuda/through_device.hpp>
#include <support/expect.hpp>

#include <cstring>

using namespace latpar;
using conformance::bytes;
using conformance::filled;

static_assert(communicator<cuda::staged<thread_communicator>>);
static_assert(communicator<cuda::staged<any_communicator>>);
static_assert(communicator<metered<cuda::staged<thread_communicator>>>);
static_assert(communicator<through_device<cuda::staged<thread_communicator>>>);

namespace {

/// Device memory with bytes in it.
class device_bytes {
public:
    explicit device_bytes(std::size_t size)
        : memory_(static_cast<index_t>(size), device_.source()) {}
    device_bytes(const bytes& values, stream_ref stream) : device_bytes(values.size()) {
        cuda::copy_bytes(data(), values.data(), memory_.bytes(), stream);
    }

    [[nodiscard]] std::byte* data() const noexcept { return memory_.data(); }
    [[nodiscard]] index_t size() const noexcept { return memory_.bytes(); }
    [[nodiscard]] bytes read(stream_ref stream) const {
        bytes out(static_cast<std::size_t>(size()));
        cuda::copy_bytes(out.data(), data(), size(), stream);
        return out;
    }
    [[nodiscard]] send_op to(int peer) const {
        return {data(), size(), dtype::u8, peer, memory_space::cuda};
    }
    [[nodiscard]] recv_op from(int peer) const {
        return {data(), size(), dtype::u8, peer, memory_space::cuda};
    }

private:
    cuda::device_memory device_;
    buffer memory_;
};

/// Keeps a device busy for some milliseconds, in a stream.
class delay {
public:
    void queue(stream_ref stream) const {
        for (int i = 0; i < 40; ++i) {
            cuda::copy_bytes(to_.data(), from_.data(), from_.size(), stream);
        }
    }

private:
    device_bytes from_{std::size_t{256} << 20};
    device_bytes to_{std::size_t{256} << 20};
};

/// Runs f(rank's staged communicator, its stream, its page-locked memory) on threads.
template <class F>
void on_ranks(int ranks, F f) {
    thread_team(ranks).run([&](thread_communicator& comm) {
        const cuda::stream stream;
        cuda::pinned_memory pinned;
        counting_resource counted(&pinned);
        cuda::staged staged(std::move(comm), &counted);
        f(staged, stream.ref(), counted);
    });
}

}  // namespace

TEST_CASE("staged conforms through device memory") {
    const int ranks = GENERATE(1, 2, 3, 5);
    threads harness{thread_team(ranks), [](thread_communicator comm) {
                        return through_device(cuda::staged(std::move(comm)));
                    }};
    conformance::run(harness);
}

TEST_CASE("staged conforms with host memory, which it passes on") {
    // With nothing to stage in.
    threads harness{thread_team(3), [](thread_communicator comm) {
                        return cuda::staged(std::move(comm), std::pmr::null_memory_resource());
                    }};
    conformance::run(harness);
}

TEST_CASE("staged and metered conforms, and each byte that is sent is received") {
    const auto account = std::make_shared<ledger>();
    threads harness{thread_team(3), [&](thread_communicator comm) {
                        return through_device(metered(cuda::staged(std::move(comm)), account));
                    }};
    conformance::run(harness);
    account->reset();
    for (const std::string& verdict :
         harness.run([](auto& comm) { return conformance::uneven_sizes(comm); })) {
        CHECK(verdict == "");
    }
    CHECK(account->total().bytes_sent == account->total().bytes_received);
    CHECK(account->total().bytes_sent > 0);
}

TEST_CASE("any_communicator conforms outside and inside of staged") {
    threads outside{thread_team(2), [](thread_communicator comm) {
                        return through_device(any_communicator(cuda::staged(std::move(comm))));
                    }};
    conformance::run(outside);
    threads inside{thread_team(2), [](thread_communicator comm) {
                       return through_device(cuda::staged(any_communicator(std::move(comm))));
                   }};
    conformance::run(inside);
}

TEST_CASE("device messages are ordered on the stream, before and after") {
    on_ranks(3, [](auto& comm, stream_ref stream, auto&) {
        const auto self = static_cast<std::size_t>(comm.rank());
        const auto left = static_cast<std::size_t>(conformance::left_of(comm));
        const delay late;
        const device_bytes source(filled(300001, self), stream);
        const device_bytes sent(source.size());
        const device_bytes got(source.size());
        const device_bytes used(source.size());
        // What is sent is written late, in stream order; what has arrived is read in stream order.
        late.queue(stream);
        cuda::copy_bytes(sent.data(), source.data(), source.size(), stream);
        exchange(comm, std::array{sent.to(conformance::right_of(comm))},
                 std::array{got.from(static_cast<int>(left))}, stream);
        cuda::copy_bytes(used.data(), got.data(), got.size(), stream);
        EXPECT(used.read(stream) == filled(300001, left));
    });
}

TEST_CASE("host and device meet in one exchange, and small messages share a buffer") {
    on_ranks(2, [](auto& comm, stream_ref stream, const counting_resource& pinned) {
        const int peer = 1 - comm.rank();
        const auto self = static_cast<std::size_t>(comm.rank());
        const auto other = static_cast<std::size_t>(peer);
        // Sizes that leave gaps between messages: 1, 66, 131, ... bytes.
        std::vector<bytes> host;
        std::vector<bytes> host_got;
        std::vector<device_bytes> device;
        std::vector<device_bytes> device_got;
        device.reserve(40);
        device_got.reserve(40);
        std::vector<send_op> sends;
        std::vector<recv_op> recvs;
        for (std::size_t i = 0; i < 40; ++i) {
            const std::size_t size = 65 * i + 1;
            host.push_back(filled(size, self * 100 + i));
            host_got.emplace_back(size);
            device.emplace_back(filled(size, self * 100 + i), stream);
            device_got.emplace_back(size);
        }
        for (std::size_t i = 0; i < 40; ++i) {
            // From either memory to either memory.
            sends.push_back(i % 2 == 0 ? device[i].to(peer) : conformance::to(peer, host[i]));
            recvs.push_back(i % 3 == 0 ? device_got[i].from(peer)
                                       : conformance::from(peer, host_got[i]));
        }
        sends.push_back({nullptr, 0, dtype::f32, peer, memory_space::cuda});
        recvs.push_back({nullptr, 0, dtype::f32, peer, memory_space::cuda});
        EXPECT(pinned.allocations() == 0);
        exchange(comm, sends, recvs, stream);
        EXPECT(pinned.allocations() == 1);
        for (std::size_t i = 0; i < 40; ++i) {
            const bytes expected = filled(65 * i + 1, other * 100 + i);
            EXPECT((i % 3 == 0 ? device_got[i].read(stream) : host_got[i]) == expected);
        }
    });
}

TEST_CASE("one part for several ranks is staged once") {
    on_ranks(4, [](auto& comm, stream_ref stream, const counting_resource& pinned) {
        const std::size_t size = 1 << 20;
        const device_bytes sent(filled(size, static_cast<std::size_t>(comm.rank())), stream);
        std::vector<device_bytes> got;
        got.reserve(4);
        std::vector<send_op> sends;
        std::vector<recv_op> recvs;
        for (int peer = 0; peer < 4; ++peer) {
            if (comm.rank() == 0) {
                sends.push_back(sent.to(peer));
            } else if (peer == 0) {
                got.emplace_back(size);
                recvs.push_back(got.back().from(peer));
            }
        }
        if (comm.rank() == 0) {
            got.emplace_back(size);
            recvs.push_back(got.back().from(0));
        }
        exchange(comm, sends, recvs, stream);
        EXPECT(got[0].read(stream) == filled(size, 0));
        EXPECT(pinned.peak_bytes() == static_cast<index_t>(comm.rank() == 0 ? 2 * size : size));
    });
}

TEST_CASE("exchanges in flight together are staged apart, and later ones take no memory") {
    on_ranks(2, [](auto& comm, stream_ref stream, const counting_resource& pinned) {
        const int peer = 1 - comm.rank();
        constexpr std::size_t count = 24;
        const auto size = [](std::size_t i) { return i % 2 == 0 ? 100 + i : 40000 * i; };
        using request = decltype(comm.start_exchange({}, {}, stream));
        std::vector<device_bytes> sent;
        std::vector<device_bytes> got;
        sent.reserve(count);
        got.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
            sent.emplace_back(filled(size(i), static_cast<std::size_t>(comm.rank()) * count + i),
                              stream);
            got.emplace_back(size(i));
        }
        index_t first = 0;
        for (int round = 0; round < 5; ++round) {
            std::vector<request> requests;
            for (std::size_t i = 0; i < count; ++i) {
                requests.push_back(comm.start_exchange(std::array{sent[i].to(peer)},
                                                       std::array{got[i].from(peer)}, stream));
            }
            while (!requests.empty()) {
                requests.back().wait();
                requests.pop_back();
            }
            for (std::size_t i = 0; i < count; ++i) {
                const auto other = static_cast<std::size_t>(peer);
                EXPECT(got[i].read(stream) == filled(size(i), other * count + i));
            }
            if (round == 0) first = pinned.allocations();
            EXPECT(first == count && pinned.allocations() == first);
        }
        // Each fits one that is there.
        exchange(comm, std::array{sent[23].to(peer)}, std::array{got[23].from(peer)}, stream);
        EXPECT(pinned.allocations() == first);
    });
}

TEST_CASE("page-locked memory is not used again before the device has read it") {
    on_ranks(2, [](auto& comm, stream_ref stream, const counting_resource& pinned) {
        constexpr std::size_t count = 6;
        constexpr std::size_t size = 3 << 20;
        const delay late;
        std::vector<device_bytes> got;
        got.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
            const bytes sent = filled(size, i);
            if (comm.rank() == 0) {
                exchange(comm, std::array{conformance::to(1, sent)}, {}, stream);
                continue;
            }
            got.emplace_back(size);
            auto request = comm.start_exchange({}, std::array{got[i].from(0)}, stream);
            // So that the copy to the device waits for its turn.
            late.queue(stream);
            request.wait();
        }
        for (std::size_t i = 0; i < got.size(); ++i) {
            EXPECT(got[i].read(stream) == filled(size, i));
        }
        EXPECT(pinned.allocations() == comm.rank());
    });
}

TEST_CASE("an exchange without page-locked memory is refused before anything is sent") {
    // Has none the first time.
    struct late_memory final : std::pmr::memory_resource {
        cuda::pinned_memory pinned;
        bool refuses = true;
        void* do_allocate(std::size_t size, std::size_t alignment) override {
            if (std::exchange(refuses, false)) throw device_error("none left");
            return pinned.allocate(size, alignment);
        }
        void do_deallocate(void* memory, std::size_t size, std::size_t alignment) override {
            pinned.deallocate(memory, size, alignment);
        }
        [[nodiscard]] bool do_is_equal(
            const std::pmr::memory_resource& other) const noexcept override {
            return this == &other;
        }
    };
    thread_team(2).run([](thread_communicator& inner) {
        const cuda::stream stream;
        late_memory memory;
        cuda::staged comm(std::move(inner), &memory);
        const int peer = 1 - comm.rank();
        const device_bytes sent(filled(1000, static_cast<std::size_t>(comm.rank())), stream);
        const device_bytes got(1000);
        const std::array sends{sent.to(peer)};
        const std::array recvs{got.from(peer)};
        expect_throws([&] { exchange(comm, sends, recvs, stream); }, "none left");
        exchange(comm, sends, recvs, stream);
        EXPECT(got.read(stream) == filled(1000, static_cast<std::size_t>(peer)));
    });
}

namespace {

/// Threads that reach what a device and the host both read, as an MPI for CUDA memory would.
struct reaching_communicator {
    thread_communicator inner;

    [[nodiscard]] int rank() const noexcept { return inner.rank(); }
    [[nodiscard]] int size() const noexcept { return inner.size(); }
    [[nodiscard]] bool reaches(memory_space) const noexcept { return true; }
    [[nodiscard]] local_request start_exchange(std::span<const send_op> sends,
                                               std::span<const recv_op> recvs, stream_ref stream) {
        std::vector<send_op> out(sends.begin(), sends.end());
        std::vector<recv_op> in(recvs.begin(), recvs.end());
        for (send_op& op : out) op.space = memory_space::host;
        for (recv_op& op : in) op.space = memory_space::host;
        return inner.start_exchange(out, in, stream);
    }
    [[nodiscard]] std::optional<reaching_communicator> split(int color, int key) {
        auto part = inner.split(color, key);
        if (!part) return std::nullopt;
        return reaching_communicator{std::move(*part)};
    }
    [[nodiscard]] reaching_communicator duplicate() { return {inner.duplicate()}; }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner.abort(reason); }
};

}  // namespace

TEST_CASE("where the inner communicator reaches the device, the stream is waited for") {
    thread_team(2).run([](thread_communicator& inner) {
        const cuda::stream stream;
        cuda::staged comm(reaching_communicator{std::move(inner)},
                          std::pmr::null_memory_resource());
        const int peer = 1 - comm.rank();
        const delay late;
        // Page-locked memory is such memory; the device writes it late.
        cuda::pinned_memory pinned;
        constexpr std::size_t size = 1 << 20;
        const buffer sent(size, pinned.source());
        const buffer got(size, pinned.source());
        const device_bytes source(filled(size, static_cast<std::size_t>(comm.rank())), stream);
        const auto view = [](std::byte* data) {
            return make_view(reinterpret_cast<float*>(data),
                             std::array<index_t, 5>{1, 1, 1, 1, size / 4}, memory_space::cuda);
        };
        std::memset(sent.data(), 0, size);
        late.queue(stream);
        cuda::kernels{}.copy(view(source.data()), view(sent.data()), stream);
        exchange(comm, std::array{send_op{sent.data(), size, dtype::u8, peer, memory_space::cuda}},
                 std::array{recv_op{got.data(), size, dtype::u8, peer, memory_space::cuda}},
                 stream);
        const bytes expected = filled(size, static_cast<std::size_t>(peer));
        EXPECT(std::memcmp(got.data(), expected.data(), size) == 0);
    });
}

TEST_CASE("a device message may exceed 2^31 bytes") {
    on_ranks(2, [](auto& comm, stream_ref stream, auto&) {
        constexpr index_t size = (index_t{1} << 31) + 12345;
        constexpr index_t piece = 5000;
        constexpr std::array<index_t, 3> places{0, (index_t{1} << 31) - 2500, size - piece};
        const device_bytes memory(static_cast<std::size_t>(size));
        const auto content = [&](std::size_t i) { return filled(piece, i); };
        if (comm.rank() == 0) {
            for (std::size_t i = 0; i < places.size(); ++i) {
                cuda::copy_bytes(memory.data() + places[i], content(i).data(), piece, stream);
            }
            exchange(comm, std::array{memory.to(1)}, {}, stream);
            return;
        }
        exchange(comm, {}, std::array{memory.from(0)}, stream);
        bytes got(piece);
        for (std::size_t i = 0; i < places.size(); ++i) {
            cuda::copy_bytes(got.data(), memory.data() + places[i], piece, stream);
            EXPECT(got == content(i));
        }
    });
}

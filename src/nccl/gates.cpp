// SPDX-License-Identifier: Apache-2.0
// Gates of streams, by the driver's operations on memory.
#include <nccl/driver.hpp>
#include <nccl/gates.hpp>

#include <cstdlib>
#include <utility>

namespace latpar::inline v0::nccl::detail {
namespace {

using cuda::detail::check;
using memory_operation = CUresult(CUstream, CUdeviceptr, cuuint32_t, unsigned int);

memory_operation* write_value() {
    static memory_operation* const function =
        driver_function<memory_operation>("cuStreamWriteValue32");
    return function;
}
memory_operation* wait_value() {
    static memory_operation* const function =
        driver_function<memory_operation>("cuStreamWaitValue32");
    return function;
}

constexpr auto kinds_of_news = static_cast<std::size_t>(gates::news::written) + 1;

CUdeviceptr word(std::byte* words, std::size_t place) {
    return reinterpret_cast<CUdeviceptr>(words + 4 * place);
}

void wait_for(CUdeviceptr at, std::uint32_t value, unsigned int flush, cudaStream_t stream) {
    check_driver(wait_value()(stream, at, value, CU_STREAM_WAIT_VALUE_GEQ | flush),
                 "cuStreamWaitValue32");
}

}  // namespace

bool gates::can_wait() noexcept {
    const char* const queues = std::getenv("CUDA_DEVICE_MAX_CONNECTIONS");
    return queues == nullptr || std::atoi(queues) >= 8;
}

gates::gates(int ranks, empty)
    : ranks_(static_cast<std::size_t>(ranks)),
      told_(kinds_of_news * ranks_),
      heard_(kinds_of_news * ranks_) {}

// What is taken is given back by the destructor from here on.
gates::gates(int ranks) : gates(ranks, empty{}) {
    const auto size = static_cast<std::size_t>(bytes());
    check(cudaStreamCreateWithFlags(&opening_, cudaStreamNonBlocking), "making a stream");
    void* memory = nullptr;
    check(cudaMalloc(&memory, size), "taking ", size, " bytes of the device");
    memory_ = static_cast<std::byte*>(memory);
    check(cudaMemsetAsync(memory, 0, size, opening_), "clearing memory");
    // Whether the device can do it at all.
    check_driver(write_value()(opening_, word(memory_, 0), 0, CU_STREAM_WRITE_VALUE_DEFAULT),
                 "cuStreamWriteValue32");
    int device = 0;
    int can_flush = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    check(cudaDeviceGetAttribute(&can_flush, cudaDevAttrCanFlushRemoteWrites, device),
          "asking what device ", device, " can do");
    if (can_flush != 0) flush_ = CU_STREAM_WAIT_VALUE_FLUSH;
    wait_for(word(memory_, 0), 0, flush_, opening_);
    // Before any peer writes there.
    check(cudaStreamSynchronize(opening_), "clearing memory");
}

gates::~gates() {
    if (opening_ != nullptr) static_cast<void>(cudaStreamDestroy(opening_));
    if (is_open_) {
        // Peers may still write here, and what was queued to them: neither is given back.
        static_cast<void>(new peer_memory(std::move(peers_)));
        return;
    }
    peers_ = {};
    if (memory_ != nullptr) static_cast<void>(cudaFree(memory_));
}

void gates::reach(peer_memory peers, int self) {
    peers_ = std::move(peers);
    self_ = self;
}

void gates::tell(news what, int peer, std::uint32_t messages, cudaStream_t stream) {
    std::uint32_t& count = told_[place_of(what, peer)];
    count += messages;
    std::byte* const there = peers_.of[static_cast<std::size_t>(peer)];
    check_driver(write_value()(stream, word(there, place_of(what, self_)), count,
                               CU_STREAM_WRITE_VALUE_DEFAULT),
                 "cuStreamWriteValue32");
}

void gates::await(news what, int peer, cudaStream_t stream) {
    const std::size_t place = place_of(what, peer);
    wait_for(word(memory_, place), heard_[place] + 1, flush_, stream);
}

void gates::count(news what, int peer, std::uint32_t messages) noexcept {
    heard_[place_of(what, peer)] += messages;
}

void gates::open() noexcept {
    is_open_ = true;
    constexpr std::uint32_t far_ahead = std::uint32_t{1} << 30;
    for (std::size_t place = 0; place < heard_.size(); ++place) {
        static_cast<void>(write_value()(opening_, word(memory_, place), heard_[place] + far_ahead,
                                        CU_STREAM_WRITE_VALUE_DEFAULT));
    }
}

}  // namespace latpar::inline v0::nccl::detail

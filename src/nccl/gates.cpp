// SPDX-License-Identifier: Apache-2.0
// Gates of streams, by the driver's operations on memory.
#include <nccl/driver.hpp>
#include <nccl/gates.hpp>

#include <atomic>
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

void set(std::uintptr_t word, std::uint32_t value, cudaStream_t stream) {
    check_driver(write_value()(stream, word, value, CU_STREAM_WRITE_VALUE_DEFAULT),
                 "cuStreamWriteValue32");
}

void wait_for(std::uintptr_t word, std::uint32_t value, unsigned int flush, cudaStream_t stream) {
    check_driver(wait_value()(stream, word, value, CU_STREAM_WAIT_VALUE_GEQ | flush),
                 "cuStreamWaitValue32");
}

/// CU_STREAM_WAIT_VALUE_FLUSH where the current device has it.
unsigned int flush_of_device() {
    int device = 0;
    int can_flush = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    check(cudaDeviceGetAttribute(&can_flush, cudaDevAttrCanFlushRemoteWrites, device),
          "asking what device ", device, " can do");
    return can_flush != 0 ? CU_STREAM_WAIT_VALUE_FLUSH : 0;
}

}  // namespace

bool gates::can_wait() noexcept {
    const char* const queues = std::getenv("CUDA_DEVICE_MAX_CONNECTIONS");
    return queues == nullptr || std::atoi(queues) >= 8;
}

std::size_t gates::words_of(int ranks) noexcept {
    return kinds_of_news * static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks);
}

gates::gates(std::shared_ptr<shared_words> words, int self, int ranks, cudaStream_t stream)
    : words_(std::move(words)),
      ranks_(static_cast<std::size_t>(ranks)),
      self_(self),
      flush_(flush_of_device()),
      told_(kinds_of_news * ranks_),
      heard_(kinds_of_news * ranks_) {
    // Each once, now and not when messages are under way; nobody else has news of a rank for itself.
    const std::uintptr_t unused = words_->on_device(place_of({}, self, self));
    set(unused, 1, stream);
    wait_for(unused, 1, flush_, stream);
}

std::size_t gates::place_of(news what, int peer, int rank) const noexcept {
    const std::size_t kind =
        static_cast<std::size_t>(rank) * kinds_of_news + static_cast<std::size_t>(what);
    return kind * ranks_ + static_cast<std::size_t>(peer);
}

void gates::tell(news what, int peer, std::uint32_t messages, cudaStream_t stream) {
    std::uint32_t& count = told_[place_of(what, peer)];
    count += messages;
    set(words_->on_device(place_of(what, self_, peer)), count, stream);
}

void gates::await(news what, int peer, cudaStream_t stream) {
    wait_for(words_->on_device(place_of(what, peer, self_)), heard_[place_of(what, peer)] + 1,
             flush_, stream);
}

void gates::count(news what, int peer, std::uint32_t messages) noexcept {
    heard_[place_of(what, peer)] += messages;
}

void gates::open() noexcept {
    constexpr std::uint32_t far_ahead = std::uint32_t{1} << 30;
    std::uint32_t* const own = words_->data() + place_of({}, 0, self_);
    for (std::size_t place = 0; place < heard_.size(); ++place) {
        std::atomic_ref(own[place]).store(heard_[place] + far_ahead);
    }
}

}  // namespace latpar::inline v0::nccl::detail

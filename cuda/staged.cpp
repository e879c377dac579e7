// SPDX-License-Identifier: Apache-2.0
// Page-locked memory for the messages of exchanges, and the copies to and from it.
#include "detail/check.hpp"

#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/staged.hpp>

#include <deque>

namespace latpar::inline v0::cuda::detail {

struct staged_messages {
    /// From page-locked to device memory.
    struct arrival {
        void* target = nullptr;
        const void* source = nullptr;
        index_t bytes = 0;
    };

    buffer memory;
    std::vector<send_op> sends;
    std::vector<recv_op> recvs;
    std::vector<arrival> arrivals;
    stream_ref stream;
    /// Behind the copies of the last arrivals, if there were any.
    cudaEvent_t delivered = nullptr;
    bool delivering = false;
};

struct staging_area {
    explicit staging_area(std::pmr::memory_resource* pinned)
        : source{pinned ? pinned : &own, memory_space::host} {}
    staging_area(const staging_area&) = delete;
    staging_area& operator=(const staging_area&) = delete;
    ~staging_area() {
        for (staged_messages& one : all) {
            if (one.delivering) static_cast<void>(cudaEventSynchronize(one.delivered));
            if (one.delivered) static_cast<void>(cudaEventDestroy(one.delivered));
        }
    }

    [[nodiscard]] staged_messages& take(index_t bytes);

    pinned_memory own;
    memory_source source;
    std::deque<staged_messages> all;
    /// Those given back the longest ago first.
    std::vector<staged_messages*> idle;
};

namespace {

/// Page-locked memory is taken in steps, so that sizes that differ a little meet the same buffer.
constexpr index_t growth = index_t{64} << 10;

template <class Op>
[[nodiscard]] bool is_staged(const Op& op) {
    return op.space == memory_space::cuda && op.count > 0;
}

/// Whether an operation needs memory: not if it sends what the one before it does.
[[nodiscard]] bool is_new(std::span<const send_op> sends, std::size_t i) {
    return i == 0 || !is_staged(sends[i - 1]) || sends[i].data != sends[i - 1].data ||
           sends[i].bytes() != sends[i - 1].bytes();
}

/// Calls `queue`, which queues copies on a stream; if it throws, those are waited for.
template <class Queue>
void queue_copies(stream_ref stream, Queue&& queue) {
    try {
        queue();
    } catch (...) {
        static_cast<void>(cudaStreamSynchronize(native(stream)));
        throw;
    }
}

}  // namespace

staged_messages& staging_area::take(index_t bytes) {
    // The smallest that is large enough, or else the largest, to grow.
    const auto better = [bytes](const staged_messages& a, const staged_messages& b) {
        const bool a_fits = a.memory.bytes() >= bytes;
        const bool b_fits = b.memory.bytes() >= bytes;
        if (a_fits != b_fits) return a_fits;
        return a_fits ? a.memory.bytes() < b.memory.bytes() : a.memory.bytes() > b.memory.bytes();
    };
    if (idle.empty()) {
        staged_messages& made = all.emplace_back();
        // So that giving back never allocates.
        idle.reserve(all.size());
        idle.push_back(&made);
    }
    const auto best = std::min_element(
        idle.begin(), idle.end(), [&](const auto* a, const auto* b) { return better(*a, *b); });
    staged_messages& out = **best;
    if (!out.delivered) {
        check(cudaEventCreateWithFlags(&out.delivered, cudaEventDisableTiming), "making an event");
    }
    if (out.delivering) check(cudaEventSynchronize(out.delivered), "waiting for what has arrived");
    out.delivering = false;
    if (out.memory.bytes() < bytes) {
        out.memory = {};
        out.memory = buffer((bytes + growth - 1) / growth * growth, source);
    }
    idle.erase(best);
    return out;
}

std::shared_ptr<staging_area> make_staging_area(std::pmr::memory_resource* pinned) {
    return std::make_shared<staging_area>(pinned);
}

staging::~staging() {
    if (messages_) area_->idle.push_back(messages_);
}

staging staging::of(std::shared_ptr<staging_area> area, std::span<const send_op> sends,
                    std::span<const recv_op> recvs, stream_ref stream) {
    index_t bytes = 0;
    for (std::size_t i = 0; i < sends.size(); ++i) {
        if (is_staged(sends[i]) && is_new(sends, i)) {
            bytes += latpar::detail::aligned(sends[i].bytes());
        }
    }
    for (const recv_op& op : recvs) {
        if (is_staged(op)) bytes += latpar::detail::aligned(op.bytes());
    }
    staged_messages& taken = area->take(bytes);
    staging out(std::move(area), taken);

    taken.sends.assign(sends.begin(), sends.end());
    taken.recvs.assign(recvs.begin(), recvs.end());
    taken.arrivals.clear();
    taken.stream = stream;
    std::byte* next = taken.memory.data();
    const auto place = [&](index_t size) {
        return std::exchange(next, next + latpar::detail::aligned(size));
    };
    queue_copies(stream, [&] {
        bool leaves = false;
        for (std::size_t i = 0; i < sends.size(); ++i) {
            if (!is_staged(sends[i])) continue;
            send_op& op = taken.sends[i];
            op.space = memory_space::host;
            if (!is_new(sends, i)) {
                op.data = taken.sends[i - 1].data;
                continue;
            }
            std::byte* const target = place(op.bytes());
            op.data = target;
            check(cudaMemcpyAsync(target, sends[i].data, static_cast<std::size_t>(op.bytes()),
                                  cudaMemcpyDefault, native(stream)),
                  "copying a message of ", op.bytes(), " bytes from the device");
            leaves = true;
        }
        if (leaves) synchronize(stream);
    });
    for (recv_op& op : taken.recvs) {
        if (!is_staged(op)) continue;
        std::byte* const source = place(op.bytes());
        taken.arrivals.push_back({op.data, source, op.bytes()});
        op.data = source;
        op.space = memory_space::host;
    }
    return out;
}

std::span<const send_op> staging::sends() const noexcept {
    return messages_->sends;
}

std::span<const recv_op> staging::recvs() const noexcept {
    return messages_->recvs;
}

void staging::deliver() {
    if (!messages_) return;
    // It goes back whatever happens.
    const staging mine(std::move(*this));
    staged_messages& set = *mine.messages_;
    if (set.arrivals.empty()) return;
    queue_copies(set.stream, [&] {
        for (const staged_messages::arrival& a : set.arrivals) {
            check(cudaMemcpyAsync(a.target, a.source, static_cast<std::size_t>(a.bytes),
                                  cudaMemcpyDefault, native(set.stream)),
                  "copying a message of ", a.bytes, " bytes to the device");
        }
        check(cudaEventRecord(set.delivered, native(set.stream)), "recording an event");
        set.delivering = true;
    });
}

}  // namespace latpar::inline v0::cuda::detail

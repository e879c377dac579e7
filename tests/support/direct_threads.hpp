// SPDX-License-Identifier: Apache-2.0
// Thread ranks that write to each other's memory, as GPUs of one host can.
#pragma once

#include <latpar/comm/direct.hpp>
#include <latpar/comm/thread_team.hpp>

#include <string>
#include <utility>

/// A thread_communicator that is a direct_communicator too, for host memory. Memory that it shared
/// is broken as soon as this rank has aborted or heard of an abort.
class direct_threads {
public:
    explicit direct_threads(
        latpar::thread_communicator inner,
        std::shared_ptr<latpar::index_t> written = std::make_shared<latpar::index_t>(0))
        : inner_(std::move(inner)), written_(std::move(written)) {}

    [[nodiscard]] int rank() const noexcept { return inner_.rank(); }
    [[nodiscard]] int size() const noexcept { return inner_.size(); }
    [[nodiscard]] bool reaches(latpar::memory_space space) const { return inner_.reaches(space); }
    [[nodiscard]] auto start_exchange(std::span<const latpar::send_op> sends,
                                      std::span<const latpar::recv_op> recvs,
                                      latpar::stream_ref stream = {}) {
        for (const latpar::send_op& op : sends) {
            if (op.target != nullptr) *written_ += op.bytes();
        }
        return inner_.start_exchange(sends, recvs, stream);
    }
    [[nodiscard]] std::optional<direct_threads> split(int color, int key) {
        auto part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return direct_threads(std::move(*part), written_);
    }
    [[nodiscard]] direct_threads duplicate() {
        return direct_threads(inner_.duplicate(), written_);
    }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) {
        *is_broken_ = true;
        inner_.abort(reason);
    }

    [[nodiscard]] latpar::peer_memory share(std::byte* memory, latpar::index_t,
                                            latpar::memory_space) {
        const auto address = reinterpret_cast<std::uintptr_t>(memory);
        latpar::peer_memory out;
        for (const std::string& text : control_all_gather(std::to_string(address))) {
            const auto theirs = static_cast<std::uintptr_t>(std::stoull(text));
            if (theirs == 0) return {};
            out.of.push_back(reinterpret_cast<std::byte*>(theirs));
        }
        out.mapping = std::make_shared<mapping>(is_broken_);
        return out;
    }
    void meet(latpar::stream_ref = {}) {
        ++meets_;
        try {
            static_cast<void>(control_all_gather({}));
        } catch (...) {
            *is_broken_ = true;
            throw;
        }
    }
    void note(std::span<const latpar::send_op>, std::span<const latpar::recv_op>) noexcept {}

    /// How often the ranks met.
    [[nodiscard]] int meets() const noexcept { return meets_; }
    /// Bytes of this rank's messages with targets, on what was made from this one, too.
    [[nodiscard]] latpar::index_t bytes_to_targets() const noexcept { return *written_; }

private:
    struct mapping : latpar::memory_mapping {
        explicit mapping(std::shared_ptr<bool> flag) : flag_(std::move(flag)) {}
        [[nodiscard]] bool is_broken() const noexcept override { return *flag_; }
        std::shared_ptr<bool> flag_;
    };

    latpar::thread_communicator inner_;
    std::shared_ptr<latpar::index_t> written_;
    int meets_ = 0;
    std::shared_ptr<bool> is_broken_ = std::make_shared<bool>(false);
};

static_assert(latpar::direct_communicator<direct_threads>);

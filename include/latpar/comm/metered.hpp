// SPDX-License-Identifier: Apache-2.0
// A communicator that keeps account of what it moves.
#pragma once

#include <latpar/comm/background.hpp>
#include <latpar/comm/communicator.hpp>
#include <latpar/comm/direct.hpp>
#include <latpar/comm/ledger.hpp>

#include <memory>
#include <utility>

namespace latpar::inline v0 {

/// Forwards to a communicator and enters every message that was started into a ledger.
///
/// Its splits and duplicates report into the same ledger, under this communicator's ranks. To meter
/// a part on its own, take it from `inner()` and wrap it again.
template <communicator C>
class metered {
public:
    // A template, so that a C which can hold any communicator is not tried on this one.
    template <std::same_as<C> Inner>
    explicit metered(Inner inner, std::shared_ptr<ledger> account = std::make_shared<ledger>())
        : inner_(std::move(inner)), ledger_(std::move(account)) {
        for (int peer = 0; peer < inner_.size(); ++peer) names_.push_back(peer);
    }

    [[nodiscard]] int rank() const noexcept { return inner_.rank(); }
    [[nodiscard]] int size() const noexcept { return inner_.size(); }
    [[nodiscard]] bool reaches(memory_space space) const noexcept { return inner_.reaches(space); }

    [[nodiscard]] auto start_exchange(std::span<const send_op> sends,
                                      std::span<const recv_op> recvs, stream_ref stream = {}) {
        auto request = inner_.start_exchange(sends, recvs, stream);
        count(sends, recvs);
        return request;
    }

    /// See direct_communicator. What is written directly counts as the messages that it replaces.
    [[nodiscard]] peer_memory share(std::byte* memory, index_t bytes,
                                    memory_space space) requires direct_communicator<C> {
        return inner_.share(memory, bytes, space);
    }
    void meet(stream_ref stream = {}) requires direct_communicator<C> { inner_.meet(stream); }
    void note(std::span<const send_op> sends,
              std::span<const recv_op> recvs) requires direct_communicator<C> {
        inner_.note(sends, recvs);
        count(sends, recvs);
    }

    [[nodiscard]] std::optional<metered> split(int color, int key) {
        std::optional<C> part = inner_.split(color, key);
        if (!part) return std::nullopt;
        metered out(std::move(*part), ledger_);
        const std::string own = std::to_string(name_of_peer(rank()));
        out.names_.clear();
        for (const std::string& name : out.control_all_gather(own)) {
            out.names_.push_back(std::stoi(name));
        }
        return out;
    }

    [[nodiscard]] metered duplicate() { return alike(inner_.duplicate()); }
    [[nodiscard]] metered background() { return alike(latpar::background(inner_)); }

    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        auto texts = inner_.control_all_gather(text);
        ledger_->count_control(static_cast<index_t>(text.size()) * (size() - 1));
        return texts;
    }

    void abort(std::string_view reason) { inner_.abort(reason); }

    [[nodiscard]] ledger& account() const noexcept { return *ledger_; }
    [[nodiscard]] C& inner() noexcept { return inner_; }

private:
    /// The same ranks on another channel.
    [[nodiscard]] metered alike(C inner) const {
        metered out(std::move(inner), ledger_);
        out.names_ = names_;
        return out;
    }
    void count(std::span<const send_op> sends, std::span<const recv_op> recvs) {
        for (const send_op& op : sends) {
            if (op.peer != rank()) ledger_->count_sent(name_of_peer(op.peer), op.bytes());
        }
        for (const recv_op& op : recvs) {
            if (op.peer != rank()) ledger_->count_received(name_of_peer(op.peer), op.bytes());
        }
    }
    [[nodiscard]] int name_of_peer(int peer) const {
        return names_[static_cast<std::size_t>(peer)];
    }

    C inner_;
    std::shared_ptr<ledger> ledger_;
    std::vector<int> names_;
};

template <class C>
metered(C) -> metered<C>;
template <class C>
metered(C, std::shared_ptr<ledger>) -> metered<C>;

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// A communicator whose ranks do not reach each other's memory, though they might.
#pragma once

#include <latpar/comm/communicator.hpp>

#include <utility>

/// Forwards what every communicator has.
template <latpar::communicator C>
class messages_only {
public:
    template <std::same_as<C> Inner>
    explicit messages_only(Inner inner) : inner_(std::move(inner)) {}

    [[nodiscard]] int rank() const { return inner_.rank(); }
    [[nodiscard]] int size() const { return inner_.size(); }
    [[nodiscard]] bool reaches(latpar::memory_space space) const { return inner_.reaches(space); }
    [[nodiscard]] auto start_exchange(std::span<const latpar::send_op> sends,
                                      std::span<const latpar::recv_op> recvs,
                                      latpar::stream_ref stream = {}) {
        return inner_.start_exchange(sends, recvs, stream);
    }
    [[nodiscard]] std::optional<messages_only> split(int color, int key) {
        std::optional<C> part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return messages_only(std::move(*part));
    }
    [[nodiscard]] messages_only duplicate() { return messages_only(inner_.duplicate()); }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

private:
    C inner_;
};

template <class C>
messages_only(C) -> messages_only<C>;

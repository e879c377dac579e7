// SPDX-License-Identifier: Apache-2.0
// Which box goes from which rank to which, and how many bytes that is.
#pragma once

#include <latpar/core/box.hpp>

#include <span>
#include <string>
#include <vector>

namespace latpar::inline v0 {

/// The box `region` of the global latent goes from rank `from` to rank `to`.
struct transfer {
    int from = 0;
    int to = 0;
    box region{};
    friend bool operator==(const transfer&, const transfer&) = default;
};

/// Transfers of one tensor that are exchanged together; the order is that of their messages.
struct transfer_phase {
    std::string name;
    index_t channels = 1;  ///< batch times channels: elements at each position
    dtype wire = dtype::f32;
    std::vector<transfer> transfers;

    [[nodiscard]] index_t bytes_of(const transfer& t) const noexcept {
        return t.region.volume() * channels * size_of(wire);
    }
    /// Payload bytes of all transfers; those from a rank to itself count nothing.
    [[nodiscard]] index_t bytes() const noexcept;
    [[nodiscard]] index_t bytes_sent_by(int rank) const noexcept;
    [[nodiscard]] index_t bytes_received_by(int rank) const noexcept;
    /// Bytes of the buffers that `rank` packs into and receives into.
    [[nodiscard]] index_t buffer_bytes(int rank) const noexcept;
    friend bool operator==(const transfer_phase&, const transfer_phase&) = default;
};

/// The positions of `whole` that are not in `hole`, as disjoint boxes in a fixed order.
[[nodiscard]] std::vector<box> subtract(const box& whole, const box& hole);

/// The transfers after which each rank has all of `wanted[rank]`, when each holds `held[rank]`.
///
/// What a rank holds it keeps; the rest it takes from the nearest rank above it, cyclically, that
/// holds it. An empty box holds, or wants, nothing.
/// Errors: usage_error if a wanted position is held by no rank.
[[nodiscard]] std::vector<transfer> plan_relayout(std::span<const box> held,
                                                  std::span<const box> wanted);

}  // namespace latpar::inline v0

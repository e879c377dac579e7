// SPDX-License-Identifier: Apache-2.0
// The account of what a communicator moved.
#pragma once

#include <latpar/core/dtype.hpp>

#include <map>
#include <mutex>
#include <ostream>
#include <string>

namespace latpar::inline v0 {

/// Payload that went out and came in.
struct traffic {
    index_t bytes_sent = 0;
    index_t bytes_received = 0;
    index_t messages_sent = 0;
    index_t messages_received = 0;

    friend bool operator==(const traffic&, const traffic&) = default;
};

/// Counts algorithmic payload, in total and per peer, and control bytes apart.
///
/// What it holds must equal what a plan promised, byte for byte. A message between two ranks
/// counts once on each side, a self-message not at all. Peers are ranks of the communicator that
/// was metered first; parts of it report into the same account. Safe to use from several threads.
class ledger {
public:
    void count_sent(int peer, index_t bytes);
    void count_received(int peer, index_t bytes);
    void count_control(index_t bytes);

    [[nodiscard]] traffic total() const;
    [[nodiscard]] traffic with(int peer) const;
    /// Bytes of text sent on the control channel.
    [[nodiscard]] index_t control_bytes() const;
    void reset();

private:
    friend std::ostream& operator<<(std::ostream& out, const ledger& account);

    mutable std::mutex mutex_;
    std::map<int, traffic> peers_;
    traffic total_;
    index_t control_bytes_ = 0;
};

/// The total and one line a peer.
std::ostream& operator<<(std::ostream& out, const ledger& account);

/// What operator<< prints.
[[nodiscard]] std::string to_string(const ledger& account);

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// Counting and printing of traffic.
#include <latpar/comm/ledger.hpp>

#include <sstream>

namespace latpar::inline v0 {
namespace {

void print(std::ostream& out, const traffic& moved) {
    out << "sent " << moved.bytes_sent << " bytes in " << moved.messages_sent
        << " messages, received " << moved.bytes_received << " bytes in "
        << moved.messages_received;
}

}  // namespace

void ledger::count_sent(int peer, index_t bytes) {
    const std::lock_guard lock(mutex_);
    for (traffic* account : {&peers_[peer], &total_}) {
        account->bytes_sent += bytes;
        ++account->messages_sent;
    }
}

void ledger::count_received(int peer, index_t bytes) {
    const std::lock_guard lock(mutex_);
    for (traffic* account : {&peers_[peer], &total_}) {
        account->bytes_received += bytes;
        ++account->messages_received;
    }
}

void ledger::count_control(index_t bytes) {
    const std::lock_guard lock(mutex_);
    control_bytes_ += bytes;
}

traffic ledger::total() const {
    const std::lock_guard lock(mutex_);
    return total_;
}

traffic ledger::with(int peer) const {
    const std::lock_guard lock(mutex_);
    const auto found = peers_.find(peer);
    return found == peers_.end() ? traffic{} : found->second;
}

index_t ledger::control_bytes() const {
    const std::lock_guard lock(mutex_);
    return control_bytes_;
}

void ledger::reset() {
    const std::lock_guard lock(mutex_);
    // The entries stay, so that counting after a reset allocates nothing.
    for (auto& [peer, moved] : peers_) moved = {};
    total_ = {};
    control_bytes_ = 0;
}

std::ostream& operator<<(std::ostream& out, const ledger& account) {
    const std::lock_guard lock(account.mutex_);
    print(out, account.total_);
    out << "; " << account.control_bytes_ << " control bytes sent";
    for (const auto& [peer, moved] : account.peers_) {
        if (moved == traffic{}) continue;
        out << "\n  rank " << peer << ": ";
        print(out, moved);
    }
    return out;
}

std::string to_string(const ledger& account) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out << account;
    return std::move(out).str();
}

}  // namespace latpar::inline v0

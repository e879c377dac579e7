// SPDX-License-Identifier: Apache-2.0
// self_communicator: a local channel with one rank.
#include <latpar/comm/self.hpp>

#include <comm/local_channel.hpp>

#include <utility>

namespace latpar::inline v0 {

self_communicator::self_communicator()
    : seat_(std::make_shared<detail::local_seat>(std::make_shared<detail::local_channel>(1), 0)) {}

local_request self_communicator::start_exchange(std::span<const send_op> sends,
                                                std::span<const recv_op> recvs, stream_ref) {
    return seat_->channel().start(0, sends, recvs);
}

std::optional<self_communicator> self_communicator::split(int color, int key) {
    std::shared_ptr<detail::local_seat> seat = seat_->channel().split(0, color, key);
    if (!seat) return std::nullopt;
    return self_communicator(std::move(seat));
}

self_communicator self_communicator::duplicate() {
    return self_communicator(seat_->channel().duplicate(0));
}

std::vector<std::string> self_communicator::control_all_gather(std::string_view text) {
    return seat_->channel().all_gather(0, text);
}

void self_communicator::abort(std::string_view reason) {
    seat_->channel().abort(0, reason);
}

}  // namespace latpar::inline v0

// SPDX-License-Identifier: Apache-2.0
// self_communicator: a local channel with one rank.
#include <latpar/comm/self.hpp>

#include <comm/local_channel.hpp>

#include <utility>

namespace latpar::inline v0 {

self_communicator::self_communicator() : channel_(std::make_shared<detail::local_channel>(1)) {}

local_request self_communicator::start_exchange(std::span<const send_op> sends,
                                                std::span<const recv_op> recvs, stream_ref) {
    return channel_->start(0, sends, recvs);
}

std::optional<self_communicator> self_communicator::split(int color, int key) {
    detail::local_channel::seat seat = channel_->split(0, color, key);
    if (!seat.channel) return std::nullopt;
    return self_communicator(std::move(seat.channel));
}

self_communicator self_communicator::duplicate() {
    return self_communicator(channel_->duplicate(0).channel);
}

std::vector<std::string> self_communicator::control_all_gather(std::string_view text) {
    return channel_->all_gather(0, text);
}

void self_communicator::abort(std::string_view reason) {
    channel_->abort(detail::concat("aborted by rank 0 of 1: ", reason));
}

}  // namespace latpar::inline v0

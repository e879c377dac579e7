// SPDX-License-Identifier: Apache-2.0
// nccl::communicator and nccl::request: thin handles on a channel.
#include <latpar/comm/agreement.hpp>
#include <latpar/nccl/communicator.hpp>

#include <cuda/detail/check.hpp>
#include <nccl/channel.hpp>

#include <exception>
#include <utility>

namespace latpar::inline v0::nccl {

communicator::communicator(std::shared_ptr<detail::channel> channel) noexcept
    : channel_(std::move(channel)) {}

communicator communicator::over(any_communicator bootstrap, const options& wanted) {
    return communicator(std::make_shared<detail::channel>(std::move(bootstrap), wanted,
                                                          std::make_shared<detail::family>()));
}

communicator communicator::adopt(ncclComm_t comm, any_communicator bootstrap,
                                 const options& wanted) {
    // On every rank, or the others would wait.
    latpar::agree_no_error(
        bootstrap, comm != nullptr
                       ? std::nullopt
                       : std::optional<std::string>("a null NCCL communicator was to be adopted"));
    return communicator(std::make_shared<detail::channel>(
        std::move(bootstrap), wanted, std::make_shared<detail::family>(), comm));
}

int communicator::rank() const noexcept {
    return channel_->rank();
}

int communicator::size() const noexcept {
    return channel_->size();
}

request communicator::start_exchange(std::span<const send_op> sends, std::span<const recv_op> recvs,
                                     stream_ref stream) {
    return channel_->start(sends, recvs, stream);
}

std::optional<communicator> communicator::split(int color, int key) {
    std::shared_ptr<detail::channel> part = channel_->split(color, key);
    if (!part) return std::nullopt;
    return communicator(std::move(part));
}

communicator communicator::duplicate() {
    return communicator(channel_->duplicate());
}

communicator communicator::background() {
    return communicator(channel_->background());
}

std::vector<std::string> communicator::control_all_gather(std::string_view text) {
    return channel_->all_gather(text);
}

void communicator::abort(std::string_view reason) {
    channel_->abort(reason);
}

peer_memory communicator::share(std::byte* memory, index_t bytes, memory_space space) {
    return channel_->share(memory, bytes, space);
}

void communicator::meet(stream_ref stream) {
    channel_->meet(stream);
}

void communicator::synchronize(stream_ref stream) {
    channel_->synchronize(cuda::detail::native(stream));
}

int communicator::device() const noexcept {
    return channel_->device();
}

ncclComm_t communicator::handle() const noexcept {
    return channel_->handle();
}

request::request(std::shared_ptr<detail::channel> channel, detail::flight* flight) noexcept
    : channel_(std::move(channel)), flight_(flight), exceptions_(std::uncaught_exceptions()) {}

request::request(request&& other) noexcept
    : channel_(std::move(other.channel_)),
      flight_(std::exchange(other.flight_, nullptr)),
      exceptions_(other.exceptions_) {}

request& request::operator=(request&& other) noexcept {
    if (this == &other) return *this;
    const request old(std::move(*this));
    channel_ = std::move(other.channel_);
    flight_ = std::exchange(other.flight_, nullptr);
    exceptions_ = other.exceptions_;
    return *this;
}

request::~request() {
    if (flight_) channel_->drop(*flight_, std::uncaught_exceptions() > exceptions_);
}

bool request::test() {
    return wait_until(deadline::min());
}

void request::wait() {
    if (flight_) channel_->wait(*std::exchange(flight_, nullptr));
}

bool request::wait_until(deadline when) {
    if (!flight_) return true;
    detail::flight* const flight = std::exchange(flight_, nullptr);
    if (channel_->wait_until(*flight, when)) return true;
    flight_ = flight;
    return false;
}

}  // namespace latpar::inline v0::nccl

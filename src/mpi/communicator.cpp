// SPDX-License-Identifier: Apache-2.0
// mpi::communicator and mpi::request: thin handles on a channel.
#include <latpar/mpi/communicator.hpp>

#include <mpi/channel.hpp>
#include <mpi/check.hpp>

#include <exception>
#include <utility>

namespace latpar::inline v0::mpi {
namespace {

void require_intra(MPI_Comm comm) {
    using latpar::detail::require;
    require(detail::is_initialized(),
            "MPI is not initialised; make an mpi::environment first, or call MPI_Init_thread");
    require<comm_error>(!detail::is_finalized(), "MPI was finalised; no communicator can be made");
    require(comm != MPI_COMM_NULL, "MPI_COMM_NULL has no ranks to make a communicator of");
    int is_inter = 0;
    detail::check(MPI_Comm_test_inter(comm, &is_inter), "MPI_Comm_test_inter");
    require(is_inter == 0,
            "an inter-communicator has two groups of ranks; merge them with MPI_Intercomm_merge");
}

std::shared_ptr<detail::channel> make_channel(MPI_Comm payload) {
    MPI_Comm control = MPI_COMM_NULL;
    detail::check(MPI_Comm_dup(payload, &control), "MPI_Comm_dup");
    return std::make_shared<detail::channel>(payload, control, nullptr, std::vector<int>());
}

}  // namespace

communicator::communicator(std::shared_ptr<detail::channel> channel) noexcept
    : channel_(std::move(channel)) {}

communicator communicator::world() {
    return borrow(MPI_COMM_WORLD);
}

communicator communicator::borrow(MPI_Comm comm) {
    require_intra(comm);
    MPI_Comm payload = MPI_COMM_NULL;
    detail::check(MPI_Comm_dup(comm, &payload), "MPI_Comm_dup");
    return communicator(make_channel(payload));
}

communicator communicator::adopt(MPI_Comm comm) {
    require_intra(comm);
    latpar::detail::require(comm != MPI_COMM_WORLD && comm != MPI_COMM_SELF,
                            "MPI_COMM_WORLD and MPI_COMM_SELF cannot be given away; borrow them");
    return communicator(make_channel(comm));
}

int communicator::rank() const noexcept {
    return channel_->rank();
}

int communicator::size() const noexcept {
    return channel_->size();
}

bool communicator::reaches(memory_space space) const noexcept {
    return channel_->reaches(space);
}

request communicator::start_exchange(std::span<const send_op> sends, std::span<const recv_op> recvs,
                                     stream_ref) {
    return channel_->start(sends, recvs);
}

std::optional<communicator> communicator::split(int color, int key) {
    std::shared_ptr<detail::channel> part = channel_->split(color, key);
    if (!part) return std::nullopt;
    return communicator(std::move(part));
}

communicator communicator::duplicate() {
    return communicator(channel_->duplicate());
}

std::vector<std::string> communicator::control_all_gather(std::string_view text) {
    return channel_->all_gather(text);
}

void communicator::abort(std::string_view reason) {
    channel_->abort(reason);
}

MPI_Comm communicator::payload_handle() const noexcept {
    return channel_->payload();
}

MPI_Comm communicator::control_handle() const noexcept {
    return channel_->control();
}

request::request(std::shared_ptr<detail::channel> channel, detail::message_set* messages) noexcept
    : channel_(std::move(channel)), messages_(messages), exceptions_(std::uncaught_exceptions()) {}

request::request(request&& other) noexcept
    : channel_(std::move(other.channel_)),
      messages_(std::exchange(other.messages_, nullptr)),
      exceptions_(other.exceptions_) {}

request& request::operator=(request&& other) noexcept {
    if (this == &other) return *this;
    const request old(std::move(*this));
    channel_ = std::move(other.channel_);
    messages_ = std::exchange(other.messages_, nullptr);
    exceptions_ = other.exceptions_;
    return *this;
}

request::~request() {
    if (messages_) channel_->drop(*messages_, std::uncaught_exceptions() > exceptions_);
}

bool request::test() {
    return wait_until(deadline::min());
}

void request::wait() {
    static_cast<void>(wait_until(deadline::max()));
}

bool request::wait_until(deadline when) {
    if (!messages_) return true;
    detail::message_set* messages = std::exchange(messages_, nullptr);
    if (channel_->wait_until(*messages, when)) return true;
    messages_ = messages;
    return false;
}

}  // namespace latpar::inline v0::mpi

// SPDX-License-Identifier: Apache-2.0
// The communicator of a single rank.
#pragma once

#include <latpar/comm/detail/local_request.hpp>

namespace latpar::inline v0 {

/// A single rank that can only talk to itself.
///
/// Lets a policy run unchanged on one rank. Self-messages match in order and are copied. It reaches
/// host memory: one GPU alone takes cuda::staged around it, or nccl::communicator::over it.
/// Errors: beyond the concept's, comm_error from a wait for a self-message whose other side was
/// not started, which would never end.
class self_communicator {
public:
    self_communicator();

    [[nodiscard]] int rank() const noexcept { return 0; }
    [[nodiscard]] int size() const noexcept { return 1; }
    [[nodiscard]] bool reaches(memory_space space) const noexcept {
        return space == memory_space::host;
    }
    [[nodiscard]] local_request start_exchange(std::span<const send_op> sends,
                                               std::span<const recv_op> recvs,
                                               stream_ref stream = {});
    [[nodiscard]] std::optional<self_communicator> split(int color, int key);
    [[nodiscard]] self_communicator duplicate();
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text);
    void abort(std::string_view reason);

private:
    explicit self_communicator(std::shared_ptr<detail::local_seat> seat) noexcept
        : seat_(std::move(seat)) {}

    std::shared_ptr<detail::local_seat> seat_;
};

static_assert(communicator<self_communicator>);

}  // namespace latpar::inline v0

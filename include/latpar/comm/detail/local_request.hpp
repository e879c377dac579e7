// SPDX-License-Identifier: Apache-2.0
// The exchange in flight of the communicators that live in one process.
#pragma once

#include <latpar/comm/communicator.hpp>

#include <memory>

namespace latpar::inline v0 {

namespace detail {
class local_channel;
class local_seat;
struct local_exchange;
}  // namespace detail

/// An exchange in flight among the threads of one process.
///
/// A waiting thread copies what it can, its own incoming messages first: a message is one copy.
/// If it is destroyed in flight because an exception passes, it withdraws what no peer has met yet
/// instead of waiting; the communicator is then aborted, at the latest when this rank uses it
/// again.
class local_request {
public:
    local_request(local_request&& other) noexcept;
    local_request& operator=(local_request&& other) noexcept;
    ~local_request();

    [[nodiscard]] bool test();
    void wait();
    [[nodiscard]] bool wait_until(deadline when);

private:
    friend class detail::local_channel;
    local_request(std::shared_ptr<detail::local_channel> channel,
                  detail::local_exchange* exchange) noexcept;

    std::shared_ptr<detail::local_channel> channel_;
    detail::local_exchange* exchange_ = nullptr;
    int exceptions_ = 0;
};

}  // namespace latpar::inline v0

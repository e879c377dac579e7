// SPDX-License-Identifier: Apache-2.0
// Agreement over the control channel: on values, on errors, on cancellation.
#pragma once

#include <latpar/comm/communicator.hpp>

#include <exception>
#include <type_traits>
#include <utility>

namespace latpar::inline v0 {

namespace detail {

/// Errors: usage_error that lists who has what, unless all texts are equal.
void require_equal(std::string_view what, const std::vector<std::string>& texts);

/// Errors: usage_error that lists them, if any text says that its rank has an error ('!' in front).
void require_no_error(const std::vector<std::string>& texts);

}  // namespace detail

/// Checks that every rank passes the same value (as streamed).
///
/// Ranks: All; blocks the host. Errors: usage_error with one text on every rank, which names the
/// ranks and their values.
template <communicator C, class T>
void agree_on(C& comm, std::string_view what, const T& value) {
    detail::require_equal(what, comm.control_all_gather(detail::concat(what, ": ", value)));
}

/// True on every rank if it is on any: how ranks agree to stop.
///
/// Ranks: All; blocks the host.
template <communicator C>
[[nodiscard]] bool any_rank(C& comm, bool here) {
    bool any = false;
    for (const std::string& text : comm.control_all_gather(here ? "1" : "0")) any |= text == "1";
    return any;
}

/// Refuses on every rank what one of them refuses, before any payload moves.
///
/// Ranks: All; blocks the host. Errors: usage_error with one text on every rank, which names
/// those that passed a message.
template <communicator C>
void agree_no_error(C& comm, const std::optional<std::string>& message) {
    detail::require_no_error(comm.control_all_gather(message ? "!" + *message : std::string()));
}

/// Calls `f`; if it throws, aborts `ranks` (a communicator, or a policy over one) with the message
/// and throws on.
///
/// So that no other rank waits for this one in vain. A comm_error that came from an abort changes
/// nothing: the first reason stands.
template <class Ranks, std::invocable F>
requires requires(Ranks& ranks, std::string_view reason) {
    ranks.abort(reason);
}
std::invoke_result_t<F> guarded(Ranks& ranks, F&& f) {
    try {
        return std::forward<F>(f)();
    } catch (const std::exception& error) {
        ranks.abort(error.what());
        throw;
    } catch (...) {
        ranks.abort("an exception that is not a std::exception");
        throw;
    }
}

}  // namespace latpar::inline v0

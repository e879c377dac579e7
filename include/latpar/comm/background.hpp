// SPDX-License-Identifier: Apache-2.0
// Channels for messages that are under way while the ranks compute.
#pragma once

#include <latpar/comm/communicator.hpp>

namespace latpar::inline v0 {

/// A duplicate for messages that are under way for as long as the ranks compute, such as those from
/// stage to stage of a pipeline.
///
/// A backend whose waiting for messages takes from a device what computing needs has a member
/// `background()`, whose duplicates wait without it where they can. Of another it is `duplicate()`.
/// Ranks: all. Errors: as duplicate.
template <communicator C>
[[nodiscard]] C background(C& comm) {
    if constexpr (requires {
                      { comm.background() } -> std::same_as<C>;
                  }) {
        return comm.background();
    } else {
        return comm.duplicate();
    }
}

}  // namespace latpar::inline v0

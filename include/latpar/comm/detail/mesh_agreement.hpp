// SPDX-License-Identifier: Apache-2.0
// Agreement of all ranks of a mesh over its communicators.
#pragma once

#include <latpar/comm/agreement.hpp>

#include <charconv>

namespace latpar::inline v0::detail {

/// Checks that every rank of a mesh passes the same value (as streamed), given its communicators
/// along all axes, the outermost first.
///
/// Ranks: All of the mesh; blocks the host. Errors: usage_error with one text on every rank, which
/// names the ranks in the order of the axes, and their values. No rank throws it before all ranks
/// have what they need to, so that it is the same error even where the caller aborts.
template <communicator C, class T>
void agree_on_mesh(std::span<C* const> axes, std::string_view what, const T& value) {
    std::vector<std::string> texts{concat(what, ": ", value)};
    for (std::size_t i = axes.size(); i-- > 0;) {
        std::string joined;
        for (const std::string& text : texts) joined += concat(text.size(), ' ', text);
        texts.clear();
        for (const std::string& part : axes[i]->control_all_gather(joined)) {
            for (const char* at = part.data(); at < part.data() + part.size();) {
                std::size_t size = 0;
                at = std::from_chars(at, part.data() + part.size(), size).ptr + 1;
                texts.emplace_back(at, size);
                at += size;
            }
        }
    }
    try {
        require_equal(what, texts);
    } catch (const usage_error&) {
        try {
            for (std::size_t i = axes.size(); i-- > 0;) {
                static_cast<void>(axes[i]->control_all_gather({}));
            }
        } catch (const comm_error&) {
            // A rank that was faster has aborted by now, for the same reason.
        }
        throw;
    }
}

}  // namespace latpar::inline v0::detail

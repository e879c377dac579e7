// SPDX-License-Identifier: Apache-2.0
// Agreement of all ranks of a mesh over its communicators.
#pragma once

#include <latpar/comm/agreement.hpp>

#include <charconv>

namespace latpar::inline v0::detail {

/// The texts of all ranks of a mesh, given its communicators along all axes, the outermost first;
/// in the order of the axes.
///
/// Ranks: All of the mesh; blocks the host.
template <communicator C>
[[nodiscard]] std::vector<std::string> gather_on_mesh(std::span<C* const> axes, std::string text) {
    std::vector<std::string> texts{std::move(text)};
    for (std::size_t i = axes.size(); i-- > 0;) {
        std::string joined;
        for (const std::string& one : texts) joined += concat(one.size(), ' ', one);
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
    return texts;
}

/// Calls `check`, which throws the same usage_error on every rank of a mesh or on none. No rank
/// throws it before all ranks have what they need to, so that it is the same error even where the
/// caller aborts.
template <communicator C, std::invocable Check>
void refuse_on_mesh(std::span<C* const> axes, Check&& check) {
    try {
        check();
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

/// Checks that every rank of a mesh passes the same value (as streamed).
///
/// Ranks: All of the mesh; blocks the host. Errors: usage_error with one text on every rank, which
/// names the ranks in the order of the axes, and their values.
template <communicator C, class T>
void agree_on_mesh(std::span<C* const> axes, std::string_view what, const T& value) {
    const auto texts = gather_on_mesh(axes, concat(what, ": ", value));
    refuse_on_mesh(axes, [&] { require_equal(what, texts); });
}

/// Refuses on every rank of a mesh what one of them refuses. See `agree_no_error`.
template <communicator C>
void agree_no_error_on_mesh(std::span<C* const> axes, const std::optional<std::string>& message) {
    const auto texts = gather_on_mesh(axes, message ? "!" + *message : std::string());
    refuse_on_mesh(axes, [&] { require_no_error(texts); });
}

}  // namespace latpar::inline v0::detail

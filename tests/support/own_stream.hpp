// SPDX-License-Identifier: Apache-2.0
// A user's type of stream.
#pragma once

#include <latpar/core/stream.hpp>

/// Converts to stream_ref, as cuda::stream does, and is no callback.
struct own_stream {
    // NOLINTNEXTLINE(google-explicit-constructor): a stream is passed as it is.
    operator latpar::stream_ref() const noexcept { return {}; }
};

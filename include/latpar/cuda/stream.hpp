// SPDX-License-Identifier: Apache-2.0
// A CUDA stream that is owned.
#pragma once

#include <latpar/core/stream.hpp>

namespace latpar::inline v0::cuda {

/// A stream of its own, for programs that have none; move-only.
///
/// Independent of the default stream. What is queued on it at its end is still done.
class stream {
public:
    /// On the current device. Errors: device_error if there is none.
    stream();
    stream(stream&& other) noexcept : handle_(other.handle_) { other.handle_ = {}; }
    stream& operator=(stream&& other) noexcept {
        const stream_ref mine = handle_;
        handle_ = other.handle_;
        other.handle_ = mine;
        return *this;
    }
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;
    ~stream();

    [[nodiscard]] stream_ref ref() const noexcept { return handle_; }
    // NOLINTNEXTLINE(google-explicit-constructor): a stream is given wherever one is referred to.
    operator stream_ref() const noexcept { return handle_; }

    /// Stream: blocks the host until everything queued is done.
    /// Errors: device_error if any of it failed.
    void synchronize() const;

private:
    stream_ref handle_;
};

/// Stream: blocks the host until everything queued on `stream` is done.
/// Errors: device_error if any of it failed.
void synchronize(stream_ref stream);

}  // namespace latpar::inline v0::cuda

// SPDX-License-Identifier: Apache-2.0
// Where bytes live, and the stream that work on them is ordered on.
#pragma once

#include <cstdint>
#include <string_view>

namespace latpar::inline v0 {

/// Where the bytes of a view live.
enum class memory_space : std::uint8_t { host, cuda };

[[nodiscard]] constexpr std::string_view name_of(memory_space space) noexcept {
    return space == memory_space::host ? "host" : "cuda";
}

/// The user's stream, not owned: a cudaStream_t on a GPU, null on the host.
///
/// With a null handle and host memory every call has finished when it returns.
struct stream_ref {
    void* handle = nullptr;
    friend bool operator==(stream_ref, stream_ref) = default;
};

}  // namespace latpar::inline v0

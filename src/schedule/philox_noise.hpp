// SPDX-License-Identifier: Apache-2.0
// What philox_noise is in every memory space: what it refuses, and its key.
#pragma once

#include <latpar/schedule/noise_source.hpp>

namespace latpar::inline v0::schedule::detail {

/// Errors: usage_error as `philox_noise::fill` says, for a source that fills the memory of `space`.
void check_philox_noise(const latent_view& out, const box& where, memory_space space);

/// The key under which coordinates are hashed.
[[nodiscard]] std::array<std::uint32_t, 2> philox_noise_key(std::uint64_t seed, noise_key key);

[[nodiscard]] std::string philox_noise_fingerprint(std::uint64_t seed);

}  // namespace latpar::inline v0::schedule::detail

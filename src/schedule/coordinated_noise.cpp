// SPDX-License-Identifier: Apache-2.0
// Noise for the frame blocks of a long video.
#include <latpar/schedule/coordinated_noise.hpp>
#include <latpar/schedule/philox.hpp>

#include <algorithm>
#include <numeric>
#include <utility>

namespace latpar::inline v0 {
namespace {

// Apart from the streams of philox_noise: its keys are themselves hashed from (stream, step).
constexpr std::uint32_t shuffle_stream = 0x73687566;

/// A whole number below `limit` from 64 random bits: the bias is below limit / 2^64.
index_t below(index_t limit, std::uint64_t bits) {
    const std::uint64_t high = bits >> 32;
    const std::uint64_t low = bits & 0xffffffff;
    const auto n = static_cast<std::uint64_t>(limit);
    return static_cast<index_t>((high * n + ((low * n) >> 32)) >> 32);
}

}  // namespace

frame_pool::frame_pool(std::uint64_t seed, index_t block_latents, index_t cat_latents)
    : seed_(seed), block_latents_(block_latents), cat_latents_(cat_latents) {
    detail::require(block_latents >= 1 && cat_latents >= 0 && cat_latents <= block_latents,
                    "noise for blocks of ", block_latents, " latent frames with a context of ",
                    cat_latents, " was asked for; use 1 or more, and 0 up to as many");
}

std::vector<index_t> frame_pool::frames_of(index_t block) const {
    detail::require(block >= 0, "noise was asked for block ", block, "; they count from 0");
    std::vector<index_t> pool(static_cast<std::size_t>(block_latents_ + cat_latents_));
    std::iota(pool.begin(), pool.end(), index_t{0});
    const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(seed_),
                                           static_cast<std::uint32_t>(seed_ >> 32)};
    for (index_t b = 1; b <= block; ++b) {
        std::rotate(pool.begin(), pool.end() - cat_latents_, pool.end());
        for (index_t i = block_latents_ - 1; i > 0; --i) {
            const auto words =
                schedule::philox4x32({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(b),
                                      static_cast<std::uint32_t>(b >> 32), shuffle_stream},
                                     key);
            const index_t other = below(i + 1, std::uint64_t{words[1]} << 32 | words[0]);
            std::swap(pool[static_cast<std::size_t>(cat_latents_ + i)],
                      pool[static_cast<std::size_t>(cat_latents_ + other)]);
        }
    }
    if (block > 0) pool.erase(pool.begin(), pool.begin() + cat_latents_);
    return pool;
}

}  // namespace latpar::inline v0

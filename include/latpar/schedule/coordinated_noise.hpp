// SPDX-License-Identifier: Apache-2.0
// Noise for the frame blocks of a long video.
#pragma once

#include <latpar/schedule/philox_noise.hpp>

#include <concepts>
#include <vector>

namespace latpar::inline v0 {

/// Noise of block after block: `noise(block, out, stream)` writes that of one block, [1, C, frames,
/// H, W] float32, as a function of the block's number alone.
template <class N>
concept block_noise = requires(const N& noise, index_t block, latent_view out, stream_ref stream) {
    noise(block, out, stream);
};

/// Blocks that draw on one pool of frames, so that neighbours share noise where they overlap.
///
/// The pool has B + C frames. The first block takes all of them. For each further block the last C
/// go to the front, the others behind them in random order, and the block takes the last B.
/// A function of seed and block, so that a video can be continued at any time.
/// Source: DualParal (arXiv 2505.21070).
class coordinated_noise {
public:
    /// Errors: usage_error for no frames in a block, or a context larger than a block.
    coordinated_noise(std::uint64_t seed, index_t block_latents, index_t cat_latents);

    /// The frames of the pool that a block takes, in order. Takes time in proportion to the block.
    [[nodiscard]] std::vector<index_t> frames_of(index_t block) const;

    /// Errors: usage_error if `out` has other frames than the block.
    void operator()(index_t block, latent_view out, stream_ref stream = {}) const;

private:
    philox_noise noise_;
    index_t block_latents_;
    index_t cat_latents_;
};

static_assert(block_noise<coordinated_noise>);

}  // namespace latpar::inline v0

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

/// Which frames the blocks of a long video draw on.
///
/// The pool has B + C frames. The first block takes all of them. For each further block the last C
/// go to the front, the others behind them in random order, and the block takes the last B.
/// A function of seed and block, so that a video can be continued at any time.
/// Source: DualParal (arXiv 2505.21070).
class frame_pool {
public:
    /// Errors: usage_error for no frames in a block, or a context larger than a block.
    frame_pool(std::uint64_t seed, index_t block_latents, index_t cat_latents);

    /// The frames of the pool that a block takes, in order. Takes time in proportion to the block.
    [[nodiscard]] std::vector<index_t> frames_of(index_t block) const;

private:
    std::uint64_t seed_;
    index_t block_latents_;
    index_t cat_latents_;
};

/// Blocks that draw on one pool of frames, so that neighbours share noise where they overlap: the
/// frames that `frame_pool` names, each as `Noise` draws it.
template <noise_source Noise>
class basic_coordinated_noise {
public:
    /// Errors: usage_error for no frames in a block, or a context larger than a block.
    basic_coordinated_noise(std::uint64_t seed, index_t block_latents, index_t cat_latents)
        : noise_(seed), pool_(seed, block_latents, cat_latents) {}

    /// See frame_pool.
    [[nodiscard]] std::vector<index_t> frames_of(index_t block) const {
        return pool_.frames_of(block);
    }

    /// Memory: what `Noise` fills.
    /// Errors: usage_error if `out` has other frames than the block.
    void operator()(index_t block, latent_view out, stream_ref stream = {}) const {
        const std::vector<index_t> frames = frames_of(block);
        detail::require(out.extents[2] == static_cast<index_t>(frames.size()), "block ", block,
                        " has ", frames.size(), " latent frames, noise was asked for ",
                        out.extents[2]);
        for (std::size_t i = 0; i < frames.size(); ++i) {
            latent_view frame = out;
            frame.data += static_cast<index_t>(i) * out.strides[2] * size_of(out.type);
            frame.extents[2] = 1;
            noise_.fill(frame, {{frames[i], 0, 0}, {1, out.extents[3], out.extents[4]}}, {0, 0},
                        stream);
        }
    }

private:
    Noise noise_;
    frame_pool pool_;
};

/// The noise of DualParal's blocks in host memory. See cuda::coordinated_noise.
using coordinated_noise = basic_coordinated_noise<philox_noise>;

static_assert(block_noise<coordinated_noise>);

}  // namespace latpar::inline v0

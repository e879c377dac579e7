# SPDX-License-Identifier: Apache-2.0
"""The latent: every 4 x 4 block of RGB pixels projected on its 16 leading principal components, whitened."""

import numpy as np
import torch
import torch.nn.functional as F

import world

BLOCK = 4
CHANNELS = 16


def blocks_of(video):
    """[..., 3, H, W] to [..., H/4, W/4, 48]; position (py * 4 + px) * 3 + c within a block."""
    *lead, c, h, w = video.shape
    n = len(lead)
    video = video.reshape(*lead, c, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    return video.permute(*range(n), n + 1, n + 3, n + 2, n + 4, n).flatten(n + 2)


def pixels_of(blocks):
    """The inverse of blocks_of."""
    *lead, h, w, _ = blocks.shape
    n = len(lead)
    blocks = blocks.reshape(*lead, h, w, BLOCK, BLOCK, 3)
    return blocks.permute(*range(n), n + 4, n, n + 2, n + 1, n + 3).reshape(*lead, 3, h * BLOCK, w * BLOCK)


def fit(seed=7, scenes=192):
    """Encoder and decoder from random scenes; half of the blocks that count touch a shape's edge or inside."""
    rng = np.random.default_rng(seed)
    scene = world.draw_scenes(rng, scenes, 3, 96, 96, world.LIVELY)
    with_shapes = blocks_of(world.render(world.to_torch(scene), 96, 96)).flatten(0, -2).double()
    empty = dict(scene, colour=np.full_like(scene["colour"], -1))
    without = blocks_of(world.render(world.to_torch(empty), 96, 96)).flatten(0, -2).double()
    touched = (with_shapes - without).abs().amax(-1) > 0.02
    weight = torch.where(touched, 0.5 / touched.sum(), 0.5 / (~touched).sum())
    mean = (weight[:, None] * with_shapes).sum(0)
    centred = with_shapes - mean
    values, vectors = torch.linalg.eigh(centred.T @ (weight[:, None] * centred))
    values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return {
        "latent.encode.weight": (vectors / values.sqrt()).T.float().contiguous(),
        "latent.encode.mean": mean.float(),
        "latent.decode.weight": (vectors * values.sqrt()).float().contiguous(),
        "latent.decode.bias": mean.float().clone(),
    }


def encode(codec, video):
    """Video [B, T, 3, H, W] in [-1, 1] to latent [B, 16, T, H/4, W/4]."""
    z = F.linear(blocks_of(video) - codec["latent.encode.mean"], codec["latent.encode.weight"])
    return z.movedim(-1, 1)


def decode(codec, latent):
    """Latent [B, 16, T, H, W] to video [B, T, 3, 4H, 4W] in [-1, 1]."""
    blocks = F.linear(latent.movedim(1, -1), codec["latent.decode.weight"], codec["latent.decode.bias"])
    return pixels_of(blocks).clamp(-1, 1)

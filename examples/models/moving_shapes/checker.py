# SPDX-License-Identifier: Apache-2.0
"""Does a clip show what its prompt says? Colours and counts in every frame; kinds and background besides."""

import torch
import torch.nn.functional as F

import world

SMALLEST = 24  # pixels; smaller spots are no shapes


def colour_masks(video):
    """Which of the eight colours each pixel has: bool [T, 8, H, W] for a video [T, 3, H, W] in [-1, 1]."""
    pixels = (video + 1) / 2
    palette = torch.tensor(list(world.COLOURS.values()), dtype=torch.float32, device=video.device) / 255
    # The pixel as a multiple of a colour (shading), and what is left over.
    multiple = torch.einsum("tchw,kc->tkhw", pixels, palette) / palette.square().sum(1)[:, None, None]
    rest = (pixels[:, None] - multiple[:, :, None] * palette[:, :, None, None]).norm(dim=2)
    # Light clips at full brightness, hence the wide tolerance; the nearest colour wins.
    fits = (multiple > 0.68) & (multiple < 1.3) & (rest < 0.2)
    rest = torch.where(fits, rest, 9.0)
    nearest = rest.argmin(1, keepdim=True)
    index = torch.arange(len(palette), device=video.device)[None, :, None, None]
    return fits & (nearest == index)


def spots(masks, sweeps=48):
    """Connected spots of at least SMALLEST pixels in each mask: counts [T, 8].

    What is one pixel thin is no spot: a long edge between a shape and the background mixes to some third colour.
    """
    t, k, h, w = masks.shape
    solid = -F.max_pool2d(-masks.float(), 2, 1)
    masks = F.max_pool2d(F.pad(solid, (1, 1, 1, 1)), 2, 1) > 0
    label = torch.arange(1, h * w + 1, dtype=torch.float32, device=masks.device).reshape(1, 1, h, w) * masks
    for _ in range(sweeps):
        label = F.max_pool2d(label, 3, 1, 1) * masks
    flat = label.flatten(2).long()
    sizes = torch.zeros(t, k, h * w + 1, device=masks.device).scatter_add_(2, flat, torch.ones_like(flat).float())
    return (sizes[:, :, 1:] >= SMALLEST).sum(2)


def kinds(masks):
    """The kind whose outline matches best, [T] for masks [T, H, W] of one colour (-1 where there is none)."""
    t, h, w = masks.shape
    weight = masks.float()
    area = weight.sum((1, 2)).clamp(min=1)
    x = torch.arange(w, device=masks.device) + 0.5
    y = torch.arange(h, device=masks.device)[:, None] + 0.5
    cx, cy = (weight * x).sum((1, 2)) / area, (weight * y).sum((1, 2)) / area
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    # Areas of the five kinds at radius 1.
    units = (3.1416, 3.24, 1.8706, 2.3879, 2.7143)
    scores = []
    for kind, unit in enumerate(units):
        r = (area / unit).sqrt()[:, None, None]
        template = world.distance(torch.tensor(kind, device=masks.device), dx, dy, r) < 0
        scores.append((template & masks).sum((1, 2)) / (template | masks).sum((1, 2)).clamp(min=1))
    best = torch.stack(scores, 1).argmax(1)
    return torch.where(area >= SMALLEST, best, -1)


def check(video, prompt):
    """Verdicts on a video [T, 3, H, W] in [-1, 1]: dict of bool.

    shapes: in at least 90 % of the frames the prompt's colours, one spot each, and no other colour.
    kinds: each shape has its kind in most frames.
    steady: each shape has its kind in at least 90 % of the frames.
    background: the palette is the nearest one.
    """
    words = world.parse(prompt)
    first_colour = world.WORDS.index(next(iter(world.COLOURS)))
    first_kind = world.WORDS.index(world.KINDS[0])
    objects = [(slot[0] - first_colour, slot[1] - first_kind) for slot in words[: world.OBJECTS] if len(slot) == 2]
    masks = colour_masks(video)
    expected = torch.zeros(len(world.COLOURS), dtype=torch.long, device=video.device)
    for colour, _ in objects:
        expected[colour] += 1
    right = (spots(masks) == expected).all(1).float().mean().item()
    shares = [(kinds(masks[:, colour]) == kind).float().mean().item() for colour, kind in objects]
    backdrop = world.WORDS[words[-1][0]]
    means = torch.stack([
        torch.tensor(ends, dtype=torch.float32, device=video.device).mean(0) / 127.5 - 1
        for ends in world.BACKGROUNDS.values()
    ])
    outside = (~masks.any(1))[:, None]
    mean = (video * outside).sum((0, 2, 3)) / outside.sum().clamp(min=1)
    nearest = (means - mean).norm(dim=1).argmin().item()
    return {
        "shapes": right >= 0.9,
        "kinds": min(shares) > 0.5,
        "steady": min(shares) >= 0.9,
        "background": backdrop == world.NULL or list(world.BACKGROUNDS)[nearest] == backdrop,
    }


def rates(videos, prompts):
    """Share of clips that pass, per verdict; `all` is shapes, kinds and background together."""
    verdicts = [check(video, prompt) for video, prompt in zip(videos, prompts)]
    for verdict in verdicts:
        verdict["all"] = verdict["shapes"] and verdict["kinds"] and verdict["background"]
    return {name: round(sum(v[name] for v in verdicts) / len(verdicts), 4) for name in verdicts[0]}

# SPDX-License-Identifier: Apache-2.0
"""The procedural world: scenes of bouncing shapes (numpy), their rendering (torch) and the prompts' grammar."""

import numpy as np
import torch

COLOURS = {
    "red": (228, 44, 40),
    "green": (60, 196, 64),
    "blue": (48, 92, 240),
    "yellow": (248, 226, 56),
    "purple": (190, 60, 214),
    "orange": (246, 138, 28),
    "white": (238, 238, 238),
    "cyan": (56, 214, 228),
}
KINDS = ("circle", "square", "triangle", "star", "ring")
# Colours at the top and at the bottom: dark enough that no shape's colour comes near.
BACKGROUNDS = {
    "night": ((10, 12, 34), (34, 30, 74)),
    "day": ((70, 104, 138), (122, 130, 128)),
    "sunset": ((66, 32, 78), (124, 64, 48)),
    "forest": ((14, 40, 36), (52, 74, 36)),
}
NULL, NONE = "<null>", "<none>"
WORDS = (NULL, NONE, *COLOURS, *KINDS, *BACKGROUNDS)
OBJECTS = 3
SLOTS = ("object 1", "object 2", "object 3", "background")
WORDS_PER_SLOT = 2

# The world that counts, and a livelier one (smaller, faster shapes) with which training began.
CALM = {"radius": (0.142, 8.8, 17.0), "vary": 0.08, "speed": (0.5, 1.4), "number": (0.3, 0.4, 0.3)}
LIVELY = {"radius": (0.125, 8.8, 13.0), "vary": 0.10, "speed": (0.7, 2.2), "number": (0.25, 0.35, 0.4)}
TEMPERS = {"calm": CALM, "lively": LIVELY}

# A shape's reach, in radii, for walls and collisions.
REACH = np.array([1.0, 1.1, 1.15, 1.2, 1.1], np.float32)


def parse(prompt):
    """Word indices [4][1 or 2] of a prompt such as "red circle, blue star, night".

    Colour and kind may come in either order, the background anywhere. ValueError for anything else.
    """
    objects, background = [], None
    for phrase in filter(None, (part.split() for part in prompt.lower().split(","))):
        for word in phrase:
            if word not in WORDS[2:]:
                raise ValueError(f"unknown word '{word}'; known words: {', '.join(WORDS[2:])}")
        if len(phrase) == 2 and phrase[0] in KINDS:
            phrase.reverse()
        if len(phrase) == 1 and phrase[0] in BACKGROUNDS and background is None:
            background = phrase[0]
        elif len(phrase) == 2 and phrase[0] in COLOURS and phrase[1] in KINDS and len(objects) < OBJECTS:
            objects.append(phrase)
        else:
            raise ValueError(
                f"cannot read '{' '.join(phrase)}': a prompt has one to {OBJECTS} times 'colour kind' and at most "
                "one background, separated by commas"
            )
    if not objects:
        raise ValueError(f"no shape in '{prompt}': write for example 'red circle, night'")
    words = objects + [[NONE]] * (OBJECTS - len(objects)) + [[background or NULL]]
    return [[WORDS.index(word) for word in slot] for slot in words]


def pad(words):
    """Word indices as an array [4, 2]; -1 where a slot has one word only."""
    result = np.full((len(SLOTS), WORDS_PER_SLOT), -1, np.int64)
    for row, slot in zip(result, words):
        row[: len(slot)] = slot
    return result


UNCONDITIONAL = pad([[0]] * len(SLOTS))


def prompt_of(scene, index):
    """The prompt of one scene of a batch."""
    names = list(COLOURS)
    phrases = [
        f"{names[colour]} {KINDS[kind]}"
        for colour, kind in zip(scene["colour"][index], scene["kind"][index])
        if colour >= 0
    ]
    return ", ".join([*phrases, list(BACKGROUNDS)[scene["background"][index]]])


def random_prompts(seed, count, height=96, width=96):
    rng = np.random.default_rng(seed)
    scene = draw_scenes(rng, count, 1, height, width)
    return [prompt_of(scene, index) for index in range(count)]


def draw_scenes(rng, count, frames, height, width, temper=CALM):
    """A batch of scenes on a canvas of height x width pixels: who is there, and where in every frame."""
    most = OBJECTS if min(height, width) >= 64 else 2
    number = rng.choice(np.arange(1, most + 1), count, p=temper["number"] if most == 3 else (0.45, 0.55))
    present = np.arange(OBJECTS) < number[:, None]
    colour = np.argsort(rng.random((count, len(COLOURS))), axis=1)[:, :OBJECTS]
    kind = rng.integers(len(KINDS), size=(count, OBJECTS))
    share, least, largest = temper["radius"]
    vary = rng.uniform(1 - temper["vary"], 1 + temper["vary"], (count, OBJECTS))
    radius = np.clip(share * np.sqrt(height * width), least, largest) * vary
    reach = radius * REACH[kind]

    # Start apart: of several random placements take the one with the widest gap.
    size = np.array([width, height], np.float64)
    tries = 24
    low, high = reach[..., None], size - reach[..., None]
    place = rng.uniform(size=(tries, count, OBJECTS, 2)) * (high - low) + low
    pairs = [(0, 1), (0, 2), (1, 2)]
    both = np.stack([present[:, a] & present[:, b] for a, b in pairs], axis=1)
    gap = np.stack(
        [np.linalg.norm(place[:, :, a] - place[:, :, b], axis=-1) - reach[:, a] - reach[:, b] for a, b in pairs], -1
    )
    best = np.where(both, gap, 1e3).min(-1)
    # The first placement that leaves a little room, or else the roomiest.
    choice = np.where((best > 2).any(0), (best > 2).argmax(0), best.argmax(0))
    place = place[choice, np.arange(count)]

    heading = rng.uniform(0, 2 * np.pi, (count, OBJECTS))
    speed = rng.uniform(*temper["speed"], (count, OBJECTS))
    velocity = speed[..., None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    path = np.empty((count, frames, OBJECTS, 2), np.float32)
    for frame in range(frames):
        path[:, frame] = place
        for _ in range(2):
            place = place + 0.5 * velocity
            velocity = np.where(place < low, np.abs(velocity), np.where(place > high, -np.abs(velocity), velocity))
            for column, (a, b) in enumerate(pairs):
                offset = place[:, b] - place[:, a]
                distance = np.linalg.norm(offset, axis=-1, keepdims=True) + 1e-6
                normal = offset / distance
                closing = ((velocity[:, a] - velocity[:, b]) * normal).sum(-1, keepdims=True)
                touch = distance < (reach[:, a] + reach[:, b])[:, None] + 1
                impulse = np.where(both[:, column, None] & touch & (closing > 0), closing, 0) * normal
                velocity[:, a] -= impulse
                velocity[:, b] += impulse

    time = np.arange(frames)

    def drift(start, rate):
        begin = rng.uniform(-start, start, (count, 1))
        return (begin + rng.uniform(-rate, rate, (count, 1)) * time).astype(np.float32)

    return {
        "kind": kind,
        "colour": np.where(present, colour, -1),
        "radius": radius.astype(np.float32),
        "path": path,
        "background": rng.integers(len(BACKGROUNDS), size=count),
        "tint": rng.uniform(-6, 6, (count, 3)).astype(np.float32),
        "tilt": drift(0.7, 0.03),
        "shift": drift(0.15, 0.006),
        "canvas": np.array([height, width]),
        "window": np.array([0, 0, height, width]),
    }


def words_of(scene):
    """The full prompt of every scene as padded word indices [count, 4, 2]."""
    colour, kind = scene["colour"], scene["kind"]
    first_colour = WORDS.index(next(iter(COLOURS)))
    first_kind = WORDS.index(KINDS[0])
    first_background = WORDS.index(next(iter(BACKGROUNDS)))
    words = np.full((len(colour), len(SLOTS), WORDS_PER_SLOT), -1, np.int64)
    words[:, :OBJECTS, 0] = np.where(colour >= 0, first_colour + colour, WORDS.index(NONE))
    words[:, :OBJECTS, 1] = np.where(colour >= 0, first_kind + kind, -1)
    words[:, OBJECTS, 0] = first_background + scene["background"]
    return words


def to_torch(scene, device="cpu"):
    return {name: torch.from_numpy(value).to(device, non_blocking=True) for name, value in scene.items()}


def star_distance(x, y, r, waist=0.52):
    """Signed distance to a five-pointed star of outer radius r, a point upwards."""
    kx, ky = 0.809016994375, -0.587785252292
    x, y = x.abs(), -y
    d = 2 * (kx * x + ky * y).clamp(min=0)
    x, y = x - d * kx, y - d * ky
    d = 2 * (-kx * x + ky * y).clamp(min=0)
    x, y = x + d * kx, y - d * ky
    x, y = x.abs(), y - r
    bx, by = waist * -ky, waist * kx - 1
    h = ((x * bx + y * by) / (bx * bx + by * by)).clamp(min=0)
    h = torch.minimum(h, r)
    return torch.sqrt((x - bx * h) ** 2 + (y - by * h) ** 2 + 1e-9) * torch.sign(y * bx - x * by)


def distance(kind, x, y, r):
    """Signed distance in pixels, negative inside, of the points (x, y) to shapes of the given kinds."""
    length = torch.sqrt(x * x + y * y + 1e-9)
    half = 0.9 * r
    qx, qy = x.abs() - half, y.abs() - half
    square = torch.sqrt(qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2 + 1e-9) + torch.maximum(qx, qy).clamp(max=0)
    triangle = torch.maximum(0.866025 * x.abs() - 0.5 * y, y) - 0.6 * r
    ring = (length - 0.8 * r).abs() - 0.27 * r
    star = star_distance(x, y, 1.25 * r)
    result = length - r
    for index, other in enumerate((square, triangle, star, ring), start=1):
        result = torch.where(kind == index, other, result)
    return result


def render(scene, height, width):
    """Frames [count, T, 3, height, width] in [-1, 1] of the window that begins at scene["window"][:2]."""
    device = scene["path"].device
    x = torch.arange(width, device=device) + 0.5 + scene["window"][1]
    y = torch.arange(height, device=device)[:, None] + 0.5 + scene["window"][0]
    canvas = scene["canvas"]
    tilt, shift = scene["tilt"][..., None, None], scene["shift"][..., None, None]
    mix = 0.5 + (x / canvas[1] - 0.5) * tilt.sin() + (y / canvas[0] - 0.5) * tilt.cos() + shift
    mix = mix.clamp(0, 1)
    mix = (mix * mix * (3 - 2 * mix))[:, :, None]
    ends = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32, device=device)[scene["background"]]
    ends = (ends + scene["tint"][:, None])[:, None, :, :, None, None]
    image = ends[:, :, 0] + (ends[:, :, 1] - ends[:, :, 0]) * mix
    # All objects at once: [count, T, objects, height, width]. They never overlap, so their order is free.
    r = scene["radius"][:, None, :, None, None]
    dx = x - scene["path"][..., 0, None, None]
    dy = y - scene["path"][..., 1, None, None]
    present = (scene["colour"] >= 0)[:, None, :, None, None]
    cover = (0.5 - distance(scene["kind"][:, None, :, None, None], dx, dy, r) / 1.8).clamp(0, 1) * present
    light = 1 - 0.16 * ((dx + dy) / (1.4 * r)).clamp(-1, 1)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device)
    paint = palette[scene["colour"].clamp(min=0)][:, None, :, :, None, None]
    for index in range(OBJECTS):
        lit = (paint[:, :, index] * light[:, :, index, None]).clamp(max=255)
        image = image + (lit - image) * cover[:, :, index, None]
    return image / 127.5 - 1

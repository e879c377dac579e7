# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint's averaged weights as moving_shapes.safetensors, and a fixture to check a port against."""

import argparse
import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import codec  # noqa: E402
import sample  # noqa: E402
import world  # noqa: E402
from model import CONFIG  # noqa: E402

HERE = Path(__file__).parent
FIXTURE_PROMPT = "red circle, blue star, night"


def metadata():
    first_colour = world.WORDS.index(next(iter(world.COLOURS)))
    first_kind = world.WORDS.index(world.KINDS[0])
    first_background = world.WORDS.index(next(iter(world.BACKGROUNDS)))
    prompt = {
        "words": list(world.WORDS),
        "colours": [first_colour, len(world.COLOURS)],
        "kinds": [first_kind, len(world.KINDS)],
        "backgrounds": [first_background, len(world.BACKGROUNDS)],
        "slots": list(world.SLOTS),
        "objects": world.OBJECTS,
        "absent": world.WORDS.index(world.NONE),
        "dropped": world.WORDS.index(world.NULL),
        "grammar": "phrases separated by commas: one to three 'colour kind', at most one background",
        "embedding": "text[slot] = prompt.slots[slot] + sum of prompt.tokens[word] over the slot's words",
        "unconditional": "every slot holds the dropped word alone",
        "example": FIXTURE_PROMPT,
    }
    latent = {
        "block": codec.BLOCK,
        "channels": codec.CHANNELS,
        "pixel_order": "row (py * 4 + px) * 3 + c of a block, RGB in [-1, 1]",
        "temporal_block": 1,
    }
    defaults = {
        "scheduler": "euler_flow",
        "steps": sample.STEPS,
        "guidance": sample.GUIDANCE,
        "frames": 16,
        "height": 96,
        "width": 96,
    }
    parts = {"config": CONFIG, "prompt": prompt, "latent": latent, "defaults": defaults}
    return {"format": "pt", **{name: json.dumps(value) for name, value in parts.items()}}


def fixture(path, weights):
    """One small sample, computed in float32 on the CPU from the rounded weights."""
    model, extra = sample.load(weights)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, codec.CHANNELS, 4, 8, 12, generator=generator)
    words = sample.words_for([FIXTURE_PROMPT], "cpu")
    conditional = sample.embed(extra, words)
    unconditional = sample.embed(extra, torch.from_numpy(world.UNCONDITIONAL)[None])
    sigma, steps, guidance = 0.75, 6, sample.GUIDANCE
    with torch.no_grad():
        timestep = torch.tensor([1000 * sigma])
        tensors = {
            "noise": noise,
            "timestep": timestep,
            "text_conditional": conditional,
            "text_unconditional": unconditional,
            "prediction_conditional": model(noise, timestep, conditional),
            "prediction_unconditional": model(noise, timestep, unconditional),
        }
        z, sigmas = noise, sample.euler_flow(steps)
        for now, following in zip(sigmas, sigmas[1:]):
            z = z + (following - now) * sample.guided(model, z, now, (conditional, unconditional), guidance)
        tensors["final_latent"] = z
        tensors["final_video"] = codec.decode(extra, z)[0, :2]
    about = {
        "prompt": FIXTURE_PROMPT,
        "words": json.dumps([[i for i in row if i >= 0] for row in words[0].tolist()]),
        "final_steps": str(steps),
        "final_guidance": str(guidance),
        "final_video": "the first two frames, [2, 3, 32, 48] in [-1, 1], of the final latent",
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, about)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--output", type=Path, default=HERE)
    a = parser.parse_args()
    state = torch.load(a.checkpoint, map_location="cpu")
    tensors = dict(state["latent"])
    for name, value in state["average"].items():
        if name.startswith("transformer."):
            tensors[name.removeprefix("transformer.")] = value.bfloat16()
        else:
            tensors[f"prompt.{name}"] = value.float()
    weights = a.output / "moving_shapes.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, weights, metadata())
    fixture(a.output / "sample_fixture.safetensors", weights)
    count = sum(value.numel() for name, value in tensors.items() if not name.startswith("latent."))
    print(f"{weights}: step {state['step']}, {count} parameters, {weights.stat().st_size} bytes")


if __name__ == "__main__":
    main()

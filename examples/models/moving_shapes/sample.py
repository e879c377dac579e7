# SPDX-License-Identifier: Apache-2.0
"""Sample clips from prompts with the exported weights, whole or cut into overlapping parts."""

import argparse
import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
import torch  # noqa: E402

import codec  # noqa: E402
import world  # noqa: E402
from model import WanTransformer  # noqa: E402

HERE = Path(__file__).parent
STEPS, GUIDANCE = 25, 3.0


def load(path, device="cpu"):
    """The model, the prompt tables and the latent codec of an exported file, all in float32."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name).float().to(device) for name in file.keys()}
    extra = {name: tensors.pop(name) for name in list(tensors) if name.split(".")[0] in ("prompt", "latent")}
    model = WanTransformer(config)
    model.load_state_dict(tensors)
    return model.to(device).eval(), extra


def embed(extra, words):
    """Text embeddings [B, 4, text_dim]: each slot's own vector plus the vectors of its words."""
    vectors = extra["prompt.tokens"][words.clamp(min=0)] * (words >= 0)[..., None]
    return extra["prompt.slots"] + vectors.sum(-2)


def words_for(prompts, device):
    return torch.from_numpy(np.stack([world.pad(world.parse(prompt)) for prompt in prompts])).to(device)


def shifted(x, shift=3.0):
    return shift * x / (1 + (shift - 1) * x)


def euler_flow(steps):
    """Noise levels of the flow-matching Euler scheduler with shift 3, a zero at the end."""
    sigma = shifted(np.linspace(1, shifted(0.001), steps))
    return [*sigma.tolist(), 0.0]


def parts(extent, count, overlap):
    """Overlapping parts of an axis of `extent` patches: (begin, end, front overlap, rear overlap)."""
    length = -(-extent // count)
    reach = int(overlap * length + 1e-9)
    result = []
    for k in range(count):
        begin, end = min(k * length, extent), min((k + 1) * length, extent)
        if begin < end:
            front, rear = min(reach, begin), min(reach, extent - end)
            result.append((begin - front, end + rear, front, rear))
    return result


def guided(model, z, sigma, text, guidance):
    """u + guidance (c - u) for text = conditional and unconditional embeddings, each [B, 4, text_dim]."""
    timestep = torch.full((2 * len(z),), 1000 * sigma, device=z.device)
    conditional, unconditional = model(torch.cat((z, z)), timestep, torch.cat(text)).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def predict(model, z, sigma, text, guidance, step, count, overlap, rotation):
    """The guided prediction, from `count` parts along the axis whose turn it is."""
    patch = (1, 2, 2)
    axes = [axis for axis in rotation if z.shape[2 + axis] > patch[axis]]
    axis = axes[step % len(axes)]
    total, norm = torch.zeros_like(z), torch.zeros_like(z)
    for begin, end, front, rear in parts(z.shape[2 + axis] // patch[axis], count, overlap):
        begin, end, front, rear = (patch[axis] * n for n in (begin, end, front, rear))
        length = end - begin
        weight = torch.ones(length, device=z.device)
        weight[:front] = torch.arange(1, front + 1, device=z.device) / max(front, 1)
        weight[length - rear :] = torch.arange(rear, 0, -1, device=z.device) / max(rear, 1)
        weight = weight.reshape([-1 if dim == 2 + axis else 1 for dim in range(5)])
        piece = guided(model, z.narrow(2 + axis, begin, length).contiguous(), sigma, text, guidance)
        total.narrow(2 + axis, begin, length).add_(weight * piece)
        norm.narrow(2 + axis, begin, length).add_(weight.expand_as(piece))
    return total / norm


@torch.no_grad()
def sample(
    model, extra, prompts, frames, height, width, steps=STEPS, guidance=GUIDANCE, seed=0, count=1, overlap=0.5,
    rotation=(0, 1, 2),
):
    """Videos [B, frames, 3, height, width] in [-1, 1]; `rotation` are the axes (T, H, W) that are cut in turn."""
    device = extra["prompt.tokens"].device
    generator = torch.Generator().manual_seed(seed)
    shape = (len(prompts), codec.CHANNELS, frames, height // codec.BLOCK, width // codec.BLOCK)
    z = torch.randn(shape, generator=generator).to(device)
    null = torch.from_numpy(world.UNCONDITIONAL).to(device).expand(len(prompts), -1, -1)
    text = (embed(extra, words_for(prompts, device)), embed(extra, null))
    sigmas = euler_flow(steps)
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:])):
        z = z + (following - sigma) * predict(model, z, sigma, text, guidance, step, count, overlap, rotation)
    with torch.autocast(device.type, enabled=False):
        return codec.decode(extra, z)


def picture(frame):
    return ((frame.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def sheet(videos, prompts, columns=8):
    """An image with one row of frames per clip under its prompt."""
    from PIL import Image, ImageDraw

    rows = []
    for video, prompt in zip(videos, prompts):
        chosen = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
        strip = np.concatenate([np.pad(picture(video[i]), ((0, 2), (0, 2), (0, 0))) for i in chosen], 1)
        title = Image.new("RGB", (strip.shape[1], 13))
        ImageDraw.Draw(title).text((2, 1), prompt, fill=(230, 230, 230))
        rows += [np.asarray(title), strip]
    return Image.fromarray(np.concatenate(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="+")
    parser.add_argument("--weights", type=Path, default=HERE / "moving_shapes.safetensors")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="denoise this many overlapping parts apart")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("sample.gif"), help="a .gif, or a .png contact sheet")
    a = parser.parse_args()
    try:
        model, extra = load(a.weights, a.device)
        videos = sample(
            model, extra, a.prompt, a.frames, a.height, a.width, a.steps, a.guidance, a.seed, a.parts, a.overlap
        )
    except ValueError as error:
        sys.exit(str(error))
    if a.output.suffix == ".gif":
        from PIL import Image

        frames = [Image.fromarray(np.concatenate([picture(v[i]) for v in videos], 1)) for i in range(a.frames)]
        frames[0].save(a.output, save_all=True, append_images=frames[1:], duration=80, loop=0)
    else:
        sheet(videos, a.prompt).save(a.output)
    print(a.output)


if __name__ == "__main__":
    main()

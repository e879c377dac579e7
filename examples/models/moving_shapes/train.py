# SPDX-License-Identifier: Apache-2.0
"""Train the model by flow matching on freshly drawn scenes; checkpoints, resumes, and samples as it goes.

The weights of this folder took three runs, 47 minutes in all, on one NVIDIA H200 (README.md; training_log.json, which
also says what this script did otherwise at the time of the first two):
    python train.py --output first --world lively --steps 7394 --short-steps 3000 --decay 0.01
    python export.py first/checkpoint.pt --output first
    python train.py --output second --initial first/moving_shapes.safetensors --minutes 12.6 --decay 0.85 \\
        --warm-up 150 --seed 2
    python export.py second/checkpoint.pt --output second
    python train.py --output third --initial second/moving_shapes.safetensors --minutes 26 --decay 0.85 \\
        --warm-up 150 --seed 3 --sheet-seconds 420
    python export.py third/checkpoint.pt && python evaluate.py --sweep --parts
A run ends after --steps steps, or after --minutes minutes of training where --steps is 0.
"""

import argparse
import copy
import json
import os
import random
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import checker  # noqa: E402
import codec  # noqa: E402
import sample  # noqa: E402
import world  # noqa: E402
from model import CONFIG, WanTransformer  # noqa: E402

PATCH_PIXELS = 8  # a token covers 8 x 8 pixels of one frame
MOST_TOKENS = 24 * 12 * 12


def draw_shape(rng, most_tokens):
    """Frames, canvas (h, w) and window (top, left, h, w), all but frames in tokens.

    Whole canvases show every shape of their prompt. Windows are cut along one axis of a larger canvas, and
    mostly narrower than any whole canvas, so that the model can tell the two apart by their extent.
    """
    while True:
        frames = rng.choice((4, 5, 6, 7, 8, 8, 10, 12, 12, 14, 16, 16, 16, 16, 20, 24))
        draw = rng.random()
        if draw < 0.39:
            frames, canvas, window = 16, (12, 12), None
        elif draw < 0.59:  # short and long clips of the default canvas, also what a cut along T shows
            canvas, window = (12, 12), None
        elif draw < 0.82:
            sizes = ((6, 6), (6, 8), (8, 6), (8, 8), (8, 10), (10, 8), (8, 12), (12, 8), (10, 10), (9, 12), (12, 9))
            sizes += ((10, 12), (12, 10), (12, 16), (16, 12), (14, 14), (16, 16), (12, 14), (14, 12))
            canvas, window = rng.choice(sizes), None
        else:
            canvas = list(rng.choice(((12, 12), (12, 12), (12, 12), (12, 16), (16, 12), (16, 16))))
            axis = rng.randrange(2)
            # A window as wide as some whole canvas is rare: there, presence is ambiguous.
            length = rng.choice((3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9))
            window = [0, 0, *canvas]
            window[axis] = rng.randrange(canvas[axis] - length + 1)
            if rng.random() < 0.3:  # parts at the border are as common as those inside
                window[axis] = rng.choice((0, canvas[axis] - length))
            window[2 + axis] = length
        window = window or [0, 0, *canvas]
        if frames * window[2] * window[3] <= most_tokens:
            return frames, canvas, window


class Scenes(torch.utils.data.Dataset):
    """Batch number `step` of the run, a function of the seed and the step alone."""

    def __init__(self, seed, tokens, short_steps, temper):
        self.seed, self.tokens, self.short_steps, self.temper = seed, tokens, short_steps, temper

    def __len__(self):
        return 10_000_000

    def __getitem__(self, step):
        most = MOST_TOKENS if step >= self.short_steps else 1200
        frames, canvas, window = draw_shape(random.Random(self.seed * 1_000_003 + step), most)
        area = window[2] * window[3]
        count = min(max(self.tokens // (frames * area), 1), 256)
        count = count // 8 * 8 or count
        rng = np.random.default_rng((self.seed, step))
        height, width = (PATCH_PIXELS * n for n in canvas)
        scene = world.draw_scenes(rng, count, frames, height, width, self.temper)
        scene["window"] = np.array([PATCH_PIXELS * n for n in window])
        words = world.words_of(scene)
        words[rng.random(count) < 0.05, world.OBJECTS, 0] = 0
        words[rng.random(count) < 0.10] = world.UNCONDITIONAL
        scene["words"] = words
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in scene.items()}


class Net(nn.Module):
    """The transformer with its prompt tables."""

    def __init__(self):
        super().__init__()
        self.transformer = WanTransformer(CONFIG)
        self.transformer.initialize()
        self.tokens = nn.Parameter(torch.randn(len(world.WORDS), CONFIG["text_dim"]))
        self.slots = nn.Parameter(torch.randn(len(world.SLOTS), CONFIG["text_dim"]))

    def tables(self):
        return {"prompt.tokens": self.tokens, "prompt.slots": self.slots}

    def forward(self, z, timestep, words):
        return self.transformer(z, timestep, sample.embed(self.tables(), words))


class Muon:
    """Momentum orthogonalised by Newton-Schulz iterations, for the blocks' matrices; equal shapes go together."""

    def __init__(self, parameters, momentum=0.95, weight_decay=0.02):
        self.groups = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self.momenta = {shape: [torch.zeros_like(p) for p in group] for shape, group in self.groups.items()}
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, rate):
        for shape, group in self.groups.items():
            gradients, momenta = [p.grad for p in group], self.momenta[shape]
            torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
            x = torch.stack(torch._foreach_lerp(gradients, momenta, self.momentum)).bfloat16()
            tall = shape[0] > shape[1]
            x = x.mT if tall else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
            x = (x.mT if tall else x).float()
            torch._foreach_mul_(group, 1 - rate * self.weight_decay)
            # The scale makes an update as large as one of Adam's at the same rate.
            torch._foreach_add_(group, list(x.unbind()), alpha=-0.2 * max(shape) ** 0.5 * rate)


def noise_levels(count, generator, device):
    """Sigmas in (0, 1): some as the sampler visits them (shift 3), more near pure noise, where the number of
    shapes and their places are settled, some uniform."""
    u = (torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)) / count
    pick = torch.rand(count, generator=generator, device=device)
    shift = torch.where(pick < 0.35, 3.0, torch.where(pick < 0.85, 8.0, 1.0))
    return shift * u / (1 + (shift - 1) * u)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, log and sheets")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=24)
    parser.add_argument("--initial", type=Path, help="exported weights to begin with")
    parser.add_argument("--world", choices=list(world.TEMPERS), default="calm")
    parser.add_argument("--decay", type=float, default=0.6, help="the last share of the run, in which the rates fall")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=131072, help="tokens in a batch")
    parser.add_argument("--short-steps", type=int, default=0, help="steps with small clips only, at first")
    parser.add_argument("--matrix-rate", type=float, default=3e-3)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--warm-up", type=int, default=400)
    parser.add_argument("--average", type=float, default=0.999)
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 2)))
    parser.add_argument("--sheet-seconds", type=float, default=240)
    parser.add_argument("--sheet-clips", type=int, default=64)
    parser.add_argument("--attention", choices=("flash", "cudnn"), default="flash")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    torch.manual_seed(a.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cuda.enable_flash_sdp(a.attention == "flash")
    torch.backends.cuda.enable_cudnn_sdp(a.attention == "cudnn")
    device = torch.device(a.device)

    net = Net().to(device)
    if a.initial:
        model, extra = sample.load(a.initial, device)
        net.transformer.load_state_dict(model.state_dict())
        with torch.no_grad():
            net.tokens.copy_(extra["prompt.tokens"])
            net.slots.copy_(extra["prompt.slots"])
    average = copy.deepcopy(net).requires_grad_(False)
    parameters, averaged = list(net.parameters()), list(average.parameters())
    matrices = [p for name, p in net.named_parameters() if ".blocks." in name and p.ndim == 2]
    others = [p for p in parameters if all(p is not m for m in matrices)]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=a.rate, betas=(0.9, 0.99), weight_decay=0, fused=device.type == "cuda")
    step, seconds, log = 0, 0.0, []
    checkpoint = a.output / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        adam.load_state_dict(state["adam"])
        muon.momenta = state["muon"]
        latent, step, seconds, log = state["latent"], state["step"], state["seconds"], state["log"]
    elif a.initial:
        latent = {name: value for name, value in extra.items() if name.startswith("latent.")}
    else:
        latent = {name: value.to(device) for name, value in codec.fit().items()}
    spread = latent["latent.decode.weight"].norm(dim=0)

    def encode_batch(scene, height, width):
        return codec.encode(latent, world.render(scene, height, width))

    if not a.no_compile:
        torch.fx.experimental._config.use_duck_shape = False
        torch._dynamo.config.suppress_errors = True
        for block in net.transformer.blocks:
            block.compile(dynamic=True)
        encode_batch = torch.compile(encode_batch, dynamic=True)

    def save():
        state = {
            "net": net.state_dict(),
            "average": average.state_dict(),
            "adam": adam.state_dict(),
            "muon": muon.momenta,
            "latent": latent,
            "step": step,
            "seconds": elapsed(),
            "log": log,
            "arguments": {name: str(value) for name, value in vars(a).items()},
        }
        torch.save(state, a.output / "checkpoint.tmp")
        os.replace(a.output / "checkpoint.tmp", checkpoint)
        (a.output / "log.json").write_text(json.dumps(log))

    def elapsed():
        return seconds + time.time() - begin

    def show():
        prompts = world.random_prompts(1000, a.sheet_clips)
        extra = {**average.tables(), **latent}
        with torch.autocast(device.type, torch.bfloat16):
            videos = sample.sample(average.transformer, extra, prompts, 16, 96, 96)
        result = checker.rates(videos, prompts)
        sample.sheet(videos[:14], prompts[:14]).save(a.output / "sheet.png")
        log.append({"step": step, "seconds": round(elapsed()), "sampled": result})
        print(json.dumps(log[-1]), flush=True)

    loader = iter(
        torch.utils.data.DataLoader(
            Scenes(a.seed, a.tokens, a.short_steps, world.TEMPERS[a.world]),
            sampler=range(step, step + 5_000_000),
            batch_size=None,
            num_workers=a.workers,
            prefetch_factor=16,
            pin_memory=device.type == "cuda",
        )
    )
    generator = torch.Generator(device)
    losses, last_sheet = [], elapsed()
    while True:
        progress = step / a.steps if a.steps else elapsed() / 60 / a.minutes
        if progress >= 1:
            break
        decay = min(1, (step + 1) / a.warm_up) * min(1, (1 - progress) / a.decay)
        scene = next(loader)
        height, width = scene["window"][2:].tolist()
        scene = {name: value.to(device, non_blocking=True) for name, value in scene.items()}
        words = scene.pop("words")
        generator.manual_seed(a.seed * 10_000_000 + step)
        with torch.no_grad():
            clean = encode_batch(scene, height, width)
            sigma = noise_levels(len(clean), generator, device)
            noise = torch.randn(clean.shape, generator=generator, device=device)
            mix = sigma.reshape(-1, 1, 1, 1, 1)
            noisy = (1 - mix) * clean + mix * noise
        with torch.autocast(device.type, torch.bfloat16):
            prediction = net(noisy, 1000 * sigma, words)
        # Near pure noise only colours and places can be told: let no detail's variance drown them.
        emphasis = spread ** sigma[:, None]
        emphasis = (emphasis / emphasis.mean(1, keepdim=True))[:, :, None, None, None]
        loss = (emphasis * (prediction - (noise - clean)).square()).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        for group in adam.param_groups:
            group["lr"] = a.rate * decay
        adam.step()
        muon.step(a.matrix_rate * decay)
        for parameter in parameters:
            parameter.grad = None
        with torch.no_grad():
            torch._foreach_lerp_(averaged, parameters, 1 - min(a.average, (1 + step) / (10 + step)))
        losses.append(loss.detach())
        step += 1
        if step % 200 == 0 or step in (1, 10, 50):
            entry = {"step": step, "seconds": round(elapsed(), 1), "loss": round(torch.stack(losses).mean().item(), 4)}
            losses = []
            log.append(entry)
            peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0
            print(json.dumps(entry), f"{peak:.1f} GiB", flush=True)
        if elapsed() - last_sheet > a.sheet_seconds:
            save()
            show()
            last_sheet = elapsed()
    save()
    show()
    save()


if __name__ == "__main__":
    main()

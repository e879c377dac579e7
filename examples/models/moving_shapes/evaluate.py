# SPDX-License-Identifier: Apache-2.0
"""Checker results for exported weights: true clips, shuffled prompts, samples at several settings; contact sheets."""

import argparse
import json
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
import torch  # noqa: E402

import checker  # noqa: E402
import codec  # noqa: E402
import sample  # noqa: E402
import world  # noqa: E402

HERE = Path(__file__).parent


def true_clips(extra, count, device):
    """Rates on rendered clips after a pass through the latent, with their own and with their neighbours' prompts."""
    scene = world.draw_scenes(np.random.default_rng(77), count, 16, 96, 96)
    video = world.render(world.to_torch(scene, device), 96, 96)
    video = codec.decode(extra, codec.encode(extra, video))
    prompts = [world.prompt_of(scene, index) for index in range(count)]
    return checker.rates(video, prompts), checker.rates(video, prompts[1:] + prompts[:1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=HERE / "moving_shapes.safetensors")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--sweep", action="store_true", help="other guidance scales and step counts too")
    parser.add_argument("--parts", action="store_true", help="parts over overlap and rotation too, with their PSNR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    model, extra = sample.load(a.weights, a.device)
    results = {}

    def run(name, frames=16, height=96, width=96, clips=a.clips // 2, sheet=True, draw=2000, against=None, **settings):
        begin = time.time()
        prompts = world.random_prompts(draw, clips, height, width)
        with torch.autocast(torch.device(a.device).type, torch.bfloat16):
            videos = sample.sample(model, extra, prompts, frames, height, width, **settings)
        results[name] = {"clips": clips, **checker.rates(videos, prompts)}
        for shapes in range(1, world.OBJECTS + 1):
            some = [i for i, prompt in enumerate(prompts) if prompt.count(",") == shapes]
            rate = checker.rates([videos[i] for i in some], [prompts[i] for i in some])["all"] if some else None
            results[name][f"all_with_{shapes}_shapes"] = rate
        if against is not None:
            error = (videos.clamp(-1, 1) - against.clamp(-1, 1)).square().mean((1, 2, 3, 4))
            psnr = 10 * torch.log10(4 / error.clamp(min=1e-12))
            results[name] |= {"psnr_db": round(psnr.mean().item(), 2), "psnr_spread_db": round(psnr.std().item(), 2)}
        print(f"{name:24}", json.dumps(results[name]), f"{time.time() - begin:.1f} s", flush=True)
        if sheet:
            sample.sheet(videos[:14], prompts[:14]).save(a.output / f"{name}.png", optimize=True)
        (a.output / "results.json").write_text(json.dumps(results, indent=1))
        return videos

    results["true"], results["shuffled"] = true_clips(extra, 2 * a.clips, a.device)
    print(results, flush=True)
    run("sampled", clips=a.clips)
    (a.output / "sampled.png").replace(a.output / "contact_sheet.png")
    for draw, seed in ((3000, 1), (5000, 5)):
        run(f"sampled_prompts_{draw}", clips=4 * a.clips, sheet=False, draw=draw, seed=seed)
    run("parts_4", count=4)
    run("sampled_128x96", height=128)
    run("sampled_24_frames", frames=24)
    run("sampled_48x48_8_frames", frames=8, height=48, width=48)
    if a.sweep:
        for draw, seed, clips in ((2000, 0, a.clips), (3000, 1, 4 * a.clips), (5000, 5, 4 * a.clips)):
            for guidance in (2.5, 3.0):
                name = f"steps_50_guidance_{guidance}_prompts_{draw}"
                run(name, steps=50, guidance=guidance, clips=clips, sheet=False, draw=draw, seed=seed)
        for guidance in (1.0, 2.0, 5.0):
            run(f"guidance_{guidance}", guidance=guidance, sheet=False)
        run("parts_2", count=2, sheet=False)
        run("sampled_8_frames", frames=8, sheet=False)
        run("steps_15", steps=15, sheet=False)
        run("sampled_64x64_8_frames", frames=8, height=64, width=64, sheet=False)
        run("parts_4_overlap_1", count=4, overlap=1.0, sheet=False)
    if a.parts:
        whole = run("whole", clips=a.clips, sheet=False)
        for count in (2, 4):
            for overlap in (0.0, 0.25, 0.5, 1.0):
                for axes, rotation in (("THW", (0, 1, 2)), ("T", (0,))):
                    name = f"parts_{count}_overlap_{overlap}_{axes}"
                    cut = {"count": count, "overlap": overlap, "rotation": rotation}
                    run(name, clips=a.clips, sheet=False, against=whole, **cut)


if __name__ == "__main__":
    main()

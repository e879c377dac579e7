# SPDX-License-Identifier: Apache-2.0
"""Check model.py against recorded results of the diffusers library, on the CPU in float32."""

import argparse
import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from model import WanTransformer  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds wan_tiny.safetensors and wan_tiny_io.safetensors")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    arguments = parser.parse_args()
    weights = arguments.folder / "wan_tiny.safetensors"
    with safe_open(weights, "pt") as file:
        config = json.loads(file.metadata()["config"])
    model = WanTransformer(config)
    model.load_state_dict(load_file(weights))
    recorded = load_file(arguments.folder / "wan_tiny_io.safetensors")
    worst = 0.0
    for case in sorted({name.split(".")[0] for name in recorded}):
        found = {}
        inputs = [recorded[f"{case}.{name}"] for name in ("latent", "timestep", "text")]
        with torch.no_grad():
            found["output"] = model(*inputs, record=found)
        for name, value in found.items():
            expected = recorded[f"{case}.{name}"]
            error = ((value - expected).norm() / expected.norm()).item()
            worst = max(worst, error)
            print(f"{case}.{name:14} relative error {error:.2e}")
    if worst > arguments.tolerance:
        sys.exit(f"the largest error {worst:.2e} exceeds {arguments.tolerance:.0e}")


if __name__ == "__main__":
    main()

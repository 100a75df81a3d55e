"""Train a small class-conditional diffusion model (EDM) on grey images; ``sampler`` is the teacher of extract.yaml.

    python pipelines/recipes/msd/teacher.py

Reads ``data/mnist/train/CLASS/*``, writes ``outputs/msd/teacher.safetensors`` and its settings.
"""

# B images of a step

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The script may be started from anywhere: the repository root makes its packages importable.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

if TYPE_CHECKING:
    from torch import Tensor

    from featstore.extraction.teachers.sampler import Sampler

AVERAGE = 0.995  # of the weights, per step
LOG_MEAN, LOG_STD = -1.2, 1.2  # of the noise levels that training draws, as in EDM


def sampler(*, classes: int, size: int, width: int, depth: int = 1, steps: int = 18) -> Sampler:
    """The teacher: 2 ``steps`` - 1 passes of the network for each picture."""
    from distill.student.one_step import UNet
    from featstore.extraction.teachers.sampler import Sampler

    network = UNet(width=width, classes=classes, depth=depth, levels=True)
    return Sampler(network, size=size, classes=classes, steps=steps)


def main(
    images: str, out: Path, *, network: dict[str, int], steps: int, batch: int, seed: int
) -> None:
    """Train, and write the averaged weights."""
    import torch
    from safetensors.torch import save_file

    from distill.evaluation.judge import grey_pictures

    torch.manual_seed(seed)
    pictures, labels = grey_pictures(images, network["size"])
    settings = {**network, "classes": int(labels.max()) + 1}
    print(f"{len(pictures)} images of {settings['classes']} classes", flush=True)
    trained = train(sampler(**settings), pictures, labels, steps=steps, batch=batch)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(trained.state_dict(), out)
    out.with_suffix(".json").write_text(json.dumps(settings, indent=2))
    print(f"written to {out.absolute()}; --teacher.model_args '{json.dumps(settings)}'")


def train(model: Sampler, pictures: Tensor, labels: Tensor, *, steps: int, batch: int) -> Any:
    """The loss of EDM: squared error of the denoised picture, weighted by the noise level."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    side = math.isqrt(pictures.shape[1])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.05
    )
    began, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        rows = torch.randint(len(pictures), (batch,))
        clean = pictures[rows].view(-1, 1, side, side)
        level = (torch.randn(batch) * LOG_STD + LOG_MEAN).exp()
        noisy = clean + torch.randn_like(clean) * level.view(-1, 1, 1, 1)
        weight = (level**2 + model.data**2) / (level * model.data) ** 2
        apart = (model.denoise(noisy, level, labels[rows]) - clean).square().mean((1, 2, 3))
        loss = (weight * apart).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        total += loss.item()
        if step % 100 == 0 or step == steps:
            print(f"step {step}: {total / step:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return average.module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="data/mnist/train")
    parser.add_argument("--out", type=Path, default=Path("outputs/msd/teacher.safetensors"))
    parser.add_argument("--size", type=int, default=28, help="sides of a picture, pixels")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2500, help="of training")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.steps < 100:
        parser.error(f"--steps {given.steps}: at least 100, a twentieth of which are the warm-up.")
    if not Path(given.images).is_dir():
        parser.error(
            f"--images {given.images}: no such folder; expected one folder per class in it."
        )
    main(
        given.images, given.out,
        network={"size": given.size, "width": given.width, "depth": given.depth},
        steps=given.steps, batch=given.batch, seed=given.seed,
    )  # fmt: skip

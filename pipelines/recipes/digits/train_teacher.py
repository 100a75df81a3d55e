"""Train the small teacher of the digits recipe, without using a label.

    python pipelines/recipes/digits/train_teacher.py

takes about eleven minutes on one CPU core.

Data: the training part (1,437 of 1,797 images) that featstore's digits source lists; no image of
the test part and no label is used.

Method: SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations", arXiv:2002.05709). Two random views of every image go through a ViT and an MLP
head, and the NT-Xent loss (their equation 1) asks each view to find its partner among all other
views of the batch; the head is then thrown away.

Written: ``teacher.safetensors`` (float16, timm's own keys) and ``teacher.json`` (what made it, and
its SHA-256).
"""

# N images, B views in a batch, H height and width of the input in pixels
# C width of the ViT, P width of the projection

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The script may be started from anywhere: the repository root makes its packages importable.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from featstore.files.atomic import write_bytes
from featstore.sources.decode import decode_image

if TYPE_CHECKING:
    import torch
    from torch import nn

ARCHITECTURE = "vit_tiny_patch16_224"  # timm's name; the shape is overridden by ``model_arguments``


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides the weights."""

    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""
    epochs: int = 140
    """Passes over the training part."""
    batch_size: int = 256
    """Images in a batch; the loss sees twice as many views."""
    learning_rate: float = 2e-3
    """Of AdamW at the end of the warm-up; half a cosine to zero follows."""
    warmup_epochs: int = 10
    """Epochs in which the learning rate rises from zero."""
    weight_decay: float = 0.05
    """Of AdamW, on matrices only."""
    temperature: float = 0.5
    """Of NT-Xent."""
    embed_dim: int = 96
    """Width of the ViT."""
    depth: int = 4
    """Blocks of the ViT."""
    num_heads: int = 3
    """Attention heads of the ViT."""
    patch_size_px: int = 8
    """Side of a patch."""
    image_size_px: int = 32
    """Side of the input; the 8 x 8 pictures are enlarged to it (bicubic)."""
    hidden_dim: int = 512
    """Hidden width of the projection head."""
    projection_dim: int = 64
    """Output width of the projection head."""
    crop_scale_min: float = 0.6
    """Smallest share of the picture's area that a view covers; the largest is 1."""
    crop_ratio_max: float = 4 / 3
    """Largest width over height of that part; the smallest is its inverse."""
    rotation_deg: float = 15.0
    """Largest rotation, either way."""
    shear: float = 0.25
    """Largest horizontal shear (tangent), either way."""
    elastic: float = 0.05
    """Standard deviation of the displacement at 4 x 4 knots; 2 is the side of the picture."""
    gamma_log_max: float = 0.7
    """Largest |log| of the exponent put on grey values; makes strokes thinner or thicker."""
    gain_min: float = 0.7
    """Smallest contrast; the largest is 1."""
    blur_max: float = 1.0
    """Largest weight of a 5 x 5 binomial blur against the sharp picture."""
    noise_max: float = 0.05
    """Largest standard deviation of the noise; grey values are in [0, 1]."""
    threads: int = 1
    """CPU threads of torch; part of the recipe, because sums depend on it in the last bit."""

    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``timm.create_model`` that rebuild the ViT."""
        return {
            "img_size": self.image_size_px,
            "patch_size": self.patch_size_px,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "num_classes": 0,
            "global_pool": "token",
        }


def main(config: Config, out_dir: Path) -> None:
    """Train, then write the two files into ``out_dir``."""
    import timm
    import torch

    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.seed)
    images = load_images(config)
    print(f"{len(images)} images, {config}", flush=True)

    started = time.monotonic()
    model = timm.create_model(ARCHITECTURE, pretrained=False, **config.model_arguments())
    loss = train(model, images, config)
    recipe = {
        "method": "SimCLR (arXiv:2002.05709)",
        "data": "scikit-learn digits, training part of featstore's digits source; no labels",
        "num_images": len(images),
        "architecture": ARCHITECTURE,
        "model_arguments": config.model_arguments(),
        "input": {
            "size_px": config.image_size_px,
            "channels": "RGB",
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "config": dataclasses.asdict(config),
        "final_loss": round(loss, 5),
        "wall_s": round(time.monotonic() - started, 1),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    write(model, recipe, out_dir)


def load_images(config: Config) -> torch.Tensor:
    """Read the training part.

    Returns:
        (N, 1, H, H) float32 grey values in [0, 1].
    """
    import numpy as np
    import torch
    from PIL import Image

    from featstore.sources.digits import DigitsSource

    source = DigitsSource()
    size = (config.image_size_px, config.image_size_px)
    pictures = [
        decode_image(source.read(row)).resize(size, Image.Resampling.BICUBIC).convert("L")
        for row, sample_id in enumerate(source.sample_ids)
        if sample_id.startswith("train/")
    ]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])[:, None]) / 255


def train(model: nn.Module, images: torch.Tensor, config: Config) -> float:
    """Train ``model`` in place.

    Args:
        model: maps (B, 3, H, H) to (B, C).
        images: (N, 1, H, H) in [0, 1].
        config: the recipe.

    Returns:
        Mean loss of the last epoch.
    """
    import torch
    from torch.nn import functional

    head = make_head(config)
    parameters = [*model.parameters(), *head.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    steps_per_epoch = len(images) // config.batch_size
    step, mean_loss, started = 0, math.nan, time.monotonic()
    for epoch in range(1, config.epochs + 1):
        losses = []
        # The last, incomplete batch is dropped: NT-Xent depends on the number of negatives.
        for rows in torch.randperm(len(images)).split(config.batch_size)[:steps_per_epoch]:
            rate = learning_rate(step / steps_per_epoch, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            views = augment(images[rows].repeat(2, 1, 1, 1), config)
            unit = functional.normalize(head(model(views)), dim=1)
            loss = nt_xent(unit, temperature=config.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item())
        mean_loss = sum(losses) / len(losses)
        if epoch % 5 == 0 or epoch in (1, config.epochs):
            elapsed = time.monotonic() - started
            print(
                f"epoch {epoch}/{config.epochs}  loss {mean_loss:.4f}  {elapsed:.0f} s", flush=True
            )
    return mean_loss


def make_head(config: Config) -> nn.Module:
    """Return the projection head, (B, C) to (B, P)."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(config.embed_dim, config.hidden_dim, bias=False),
        nn.BatchNorm1d(config.hidden_dim),
        nn.ReLU(),
        nn.Linear(config.hidden_dim, config.projection_dim, bias=False),
        nn.BatchNorm1d(config.projection_dim),
    )


def learning_rate(epoch: float, config: Config) -> float:
    """Linear warm-up, then half a cosine to zero; ``epoch`` may be a fraction."""
    warmup = min(1.0, epoch / config.warmup_epochs)
    share = max(0.0, epoch - config.warmup_epochs) / max(1, config.epochs - config.warmup_epochs)
    return config.learning_rate * warmup * (1 + math.cos(math.pi * share)) / 2


def nt_xent(unit: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """SimCLR's equation 1, averaged over all views.

    Args:
        unit: (2 n, P) of length 1; row i and row i + n are views of one image.
        temperature: divides the cosine similarities.
    """
    import torch
    from torch.nn import functional

    count = len(unit)
    similarity = unit @ unit.T / temperature
    similarity = similarity.masked_fill(torch.eye(count, dtype=torch.bool), -torch.inf)
    partner = torch.arange(count).roll(count // 2)
    return functional.cross_entropy(similarity, partner)


def augment(grey: torch.Tensor, config: Config) -> torch.Tensor:
    """Draw one random view of every picture. Digits are never mirrored.

    Args:
        grey: (B, 1, H, H) in [0, 1].
        config: ranges of the changes.

    Returns:
        (B, 3, H, H) input of the model, in [-1, 1] up to noise.
    """
    import torch
    from torch.nn import functional

    grid = sampling_grid(len(grey), config)
    view = functional.grid_sample(grey, grid, align_corners=False)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(grey), 1, 1, 1)

    view = view.clamp_min(1e-6) ** uniform(-config.gamma_log_max, config.gamma_log_max).exp()
    binomial = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    blurred = functional.conv2d(view, torch.outer(binomial, binomial)[None, None], padding=2)
    view = view.lerp(blurred, uniform(0, config.blur_max))
    gain = uniform(config.gain_min, 1.0)
    view = view * gain + uniform(0, 1) * (1 - gain)
    view = view + uniform(0, config.noise_max) * torch.randn_like(view)
    return (view * 2 - 1).expand(-1, 3, -1, -1)


def sampling_grid(count: int, config: Config) -> torch.Tensor:
    """Random crop, rotation, shear and elastic bend as one map.

    Returns:
        (B, H, H, 2) positions (x, y) to read from; the picture spans [-1, 1].
    """
    import torch
    from torch.nn import functional

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count)

    area, log_ratio = uniform(config.crop_scale_min, 1.0), math.log(config.crop_ratio_max)
    aspect = uniform(-log_ratio, log_ratio).exp()
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    shift_x = uniform(-1, 1) * (1 - width).abs()
    shift_y = uniform(-1, 1) * (1 - height).abs()
    angle = uniform(-config.rotation_deg, config.rotation_deg) * (math.pi / 180)
    shear = uniform(-config.shear, config.shear)
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack(
        [
            torch.stack([width * cos, width * (shear * cos - sin), shift_x], dim=1),
            torch.stack([height * sin, height * (shear * sin + cos), shift_y], dim=1),
        ],
        dim=1,
    )
    side = config.image_size_px
    grid = functional.affine_grid(affine, [count, 1, side, side], align_corners=False)
    knots = config.elastic * torch.randn(count, 2, 4, 4)
    bend = functional.interpolate(knots, (side, side), mode="bicubic", align_corners=True)
    return grid + bend.permute(0, 2, 3, 1)


def write(model: nn.Module, recipe: dict[str, Any], out_dir: Path) -> None:
    """Write the weights, then the recipe with their hash; each file atomically."""
    from safetensors.torch import save

    weights = save({key: value.half().contiguous() for key, value in model.state_dict().items()})
    recipe = {**recipe, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    write_bytes(out_dir / "teacher.safetensors", weights)
    write_bytes(out_dir / "teacher.json", (json.dumps(recipe, indent=2) + "\n").encode())
    print(f"final loss {recipe['final_loss']}, {len(weights):,} bytes in {out_dir}")


def parse_arguments() -> tuple[Config, Path]:
    """Read the command line; what it does not name keeps the value of ``Config``."""
    parser = argparse.ArgumentParser(
        description="Train the small teacher of the digits recipe, without labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder for the two files",
    )
    parser.add_argument(
        "--epochs", type=int, default=Config.epochs, help="passes over the training part"
    )
    parser.add_argument(
        "--seed", type=int, default=Config.seed, help="of weights, order and augmentation"
    )
    parser.add_argument("--threads", type=int, default=Config.threads, help="CPU threads of torch")
    arguments = parser.parse_args()
    config = Config(epochs=arguments.epochs, seed=arguments.seed, threads=arguments.threads)
    return config, arguments.out_dir


if __name__ == "__main__":
    main(*parse_arguments())

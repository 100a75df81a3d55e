"""Draw the masks of the parts of faces, and train the small SAM of the recipe on them.

    python pipelines/recipes/tinysam/train_teacher.py

Reads ``data/faces`` (../landmarks/README.md writes it), writes ``data/face_objects`` and
``outputs/tinysam/teacher``, a folder as ``SamModel.save_pretrained`` writes it. People of the test
part of distill.yaml teach nothing. ``--steps`` is the number of steps of ``--batch`` images.
"""

# N images, B images of a step, H sides of the input in pixels

from __future__ import annotations

import argparse
import csv
import dataclasses
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

OBJECTS: dict[str, list[list[int]]] = {
    "face": [list(range(68))],
    "brows": [list(range(17, 22)), list(range(22, 27))],
    "eyes": [list(range(36, 42)), list(range(42, 48))],
    "nose": [[27, *range(31, 36)]],
    "mouth": [list(range(48, 60))],
}
"""Numbers of the points whose convex hulls are an object. Hulls overlap; bit k of a pixel is object k."""

PIXELS, PATCH = 64, 4  # sides of the input and of a patch
WIDTH = 64  # of the embedding; a mask is a weighted sum of an eighth as many maps

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(faces: Path, masks: Path, out: Path, *, steps: int, batch: int, seed: int) -> None:
    """Draw the masks, train, and write the model."""
    import torch

    torch.manual_seed(seed)
    draw_masks(faces, masks)
    pixels, targets = load(faces, masks)
    print(f"{len(pixels)} images to train on", flush=True)
    model = train(pixels, targets, steps=steps, batch=batch)
    model.save_pretrained(out)
    processor = {
        "size": {"longest_edge": PIXELS},
        "pad_size": {"height": PIXELS, "width": PIXELS},
        "do_pad": True,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 2,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    print(f"written to {out.absolute()}")


def draw_masks(faces: Path, masks: Path) -> None:
    """One image per face, where it is not there yet."""
    import numpy as np
    from PIL import Image, ImageDraw
    from scipy.spatial import ConvexHull

    masks.mkdir(parents=True, exist_ok=True)
    with (faces / "points.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    for name, *values in rows:
        path = masks / f"{Path(name).stem}.png"
        if path.exists():
            continue
        points = np.array(values, float).reshape(-1, 2)
        with Image.open(faces / name) as image:
            size = image.size
        whole = np.zeros(size[::-1], np.uint8)
        for bit, hulls in enumerate(OBJECTS.values()):
            part = Image.new("1", size)
            for numbers in hulls:
                own = points[numbers]
                # QJ: the points of a brow may lie on a line.
                corners = own[ConvexHull(own, qhull_options="QJ").vertices]
                ImageDraw.Draw(part).polygon([tuple(corner) for corner in corners], fill=1)
            whole |= np.asarray(part, np.uint8) << bit
        Image.fromarray(whole).save(path)


def load(faces: Path, masks: Path) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, H, H) uint8 and values of masks (N, H, H) of the images that distill.yaml trains on."""
    import numpy as np

    from distill.config import DataConfig
    from distill.data.join_samples import join_samples
    from distill.data.pictures import ViewDataset
    from distill.data.schedule import CANONICAL, Request
    from distill.data.split_parts import split_parts
    from distill.tasks.segment_parts import open_masks
    from featstore.format.views import ViewSet
    from featstore.sources import open_source
    from featstore.sources.config import SourceConfig
    from featstore.sources.load import ViewRule

    config = SourceConfig(kind="folder", path=str(faces), labels_from="none")
    data = DataConfig(
        labelled=["*"], unlabelled=[], test=[], holdout=0.2, group=r"\d{6}_(.+)_\d+\.jpg"
    )
    samples = join_samples(open_source(config), None, data)
    samples = dataclasses.replace(samples, labels=np.zeros(len(samples.ids), np.int64))
    targets = open_masks(
        config, samples, folder=str(masks), member="", classes=2 ** len(OBJECTS), ignore=0
    )
    rule = ViewRule(ViewSet(), (PIXELS, PIXELS), 1.0, "center", "bilinear")
    dataset = ViewDataset(samples, rule, size=(PIXELS, PIXELS), targets=targets)
    rows = split_parts(samples, data, 0).labelled.tolist()
    found = dataset.__getitems__([Request(row, CANONICAL, 0, True) for row in rows])
    assert found.targets is not None
    assert not found.problems
    return found.pixels, found.targets


def build() -> Any:
    """A SAM with an image encoder of three blocks."""
    from transformers import SamConfig, SamModel

    side = {"image_size": PIXELS, "patch_size": PATCH}
    config: Any = SamConfig(
        vision_config={
            **side,
            "hidden_size": 64,
            "output_channels": WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "window_size": 8,
            "global_attn_indexes": [0, 2],
            "num_pos_feats": WIDTH // 2,
            "mlp_dim": 128,
            "initializer_range": 0.02,
        },
        prompt_encoder_config={**side, "hidden_size": WIDTH, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 128,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    )
    model = SamModel(config)
    # Initial weights as in SAM, those of PyTorch: transformers draws them so small that little is learnt in this time.
    for module in model.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    model.shared_image_embedding.positional_embedding.data.normal_()
    return model


def train(pixels: Tensor, targets: Tensor, *, steps: int, batch: int) -> Any:
    """The trained model.

    Dice loss, error of the estimated IoU, and cross entropy with more weight on small objects; by the focal loss, which
    it replaces, a decoder with random weights learns nothing in this time. A convolution on the embedding also says
    which objects cover each pixel, so that the encoder learns sooner; it is thrown away.
    """
    import torch
    from torch.nn import functional as F

    from distill.losses.masks import enlarge
    from distill.tasks.prompt_decoder import PromptDecoder
    from distill.tasks.promptable_parts import Prompter
    from featstore.format.mask_decoder import PARTS, settings_of, tensors_of

    model = build()
    decoder = PromptDecoder(settings_of(tensors_of(model)))
    for part in PARTS:
        getattr(decoder, part).load_state_dict(getattr(model, part).state_dict())
        getattr(decoder, part).requires_grad_(True)
    decoder.prompt_encoder.shared_embedding.requires_grad_(False)
    prompter = Prompter(decoder, objects=len(OBJECTS), overlap=True, prompts=4, rounds=2)
    dense = torch.nn.Conv2d(WIDTH, len(OBJECTS) * PATCH**2, 1)
    parameters = [
        *model.vision_encoder.parameters(), *decoder.parameters(), *dense.parameters()
    ]  # fmt: skip
    optimiser = torch.optim.AdamW([v for v in parameters if v.requires_grad], lr=1e-3)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    began = time.monotonic()
    for step in range(steps):
        rate = 2e-3 * min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.param_groups[0]["lr"] = rate
        rows = torch.randint(len(pixels), (batch,))
        images = (pixels[rows].float() / 255 - mean) / std
        embedding = model.vision_encoder(images).last_hidden_state
        prompted = prompter.prompt(embedding, targets[rows])
        truth, losses = prompted.truth.float(), prompted.losses()
        weight = 1 + truth * (1 / (2 * truth.mean((2, 3), keepdim=True) + 0.02) - 1)
        losses["pixels"] = F.binary_cross_entropy_with_logits(
            enlarge(prompted.masks.logits, truth), truth, weight
        )
        covered = F.pixel_shuffle(dense(embedding), PATCH)
        losses["dense"] = F.binary_cross_entropy_with_logits(
            covered, prompter.masks(targets[rows]).float()
        )
        loss = losses["dice"] + losses["iou"] + 0.5 * losses["pixels"] + 10 * losses["dense"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % 50 == 0:
            shown = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
            print(f"step {step + 1}: {shown}, {time.monotonic() - began:.0f} s", flush=True)
    for part in PARTS:
        getattr(model, part).load_state_dict(getattr(decoder, part).state_dict())
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", type=Path, default=Path("data/faces"))
    parser.add_argument("--masks", type=Path, default=Path("data/face_objects"))
    parser.add_argument("--out", type=Path, default=Path("outputs/tinysam/teacher"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(
        given.faces, given.masks, given.out,
        steps=given.steps, batch=given.batch, seed=given.seed,
    )  # fmt: skip

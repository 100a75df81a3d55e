"""From a picture to a model's input: the rule for people who write it on a phone, vectors to test it by, and the part
of it that can live in the graph.
"""

# B batch, H W student input, K classes

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from distill.evaluation.embedding import EmbeddingHead
from distill.export.images import Pixels
from distill.student.model import Student
from featstore.files.atomic import write_bytes
from featstore.format.views import canonical_box, cut
from featstore.sources.load import ViewRule

NAME = "preprocessing.json"
PICTURE = "reference/picture.png"
CROP = "reference/crop.png"
TENSOR = "reference/input.raw"

MOST_VALUES = 10_000
"""Values of an output that are written as a reference: the first ones, row by row."""

Input = npt.NDArray[np.float32] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class InputSpec:
    """What a model's graph is given."""

    size: tuple[int, int]  # (H, W), pixels
    mean: tuple[float, ...]  # of the channels R, G, B, for values between 0 and 1
    std: tuple[float, ...]  # likewise
    baked: bool = False  # the graph subtracts the mean and divides by the deviation itself
    uint8: bool = False  # the graph takes bytes; only with ``baked``

    def feed(self, pixels: Pixels) -> Input:
        """(B, 3, H, W) uint8 pictures -> what the graph is given, (B, 3, H, W) float32 or uint8."""
        if self.uint8:
            return pixels
        values = pixels.astype(np.float32) / np.float32(255)
        if self.baked:
            return values
        mean, std = (
            np.array(item, np.float32).reshape(1, 3, 1, 1) for item in (self.mean, self.std)
        )
        fed: npt.NDArray[np.float32] = (values - mean) / std
        return fed

    def example(self, batch: int) -> Tensor:
        """(B, 3, H, W) zeros of the input's type, to trace a graph with."""
        dtype = torch.uint8 if self.uint8 else torch.float32
        return torch.zeros(batch, 3, *self.size, dtype=dtype)


def input_spec(student: Student, *, baked: bool, uint8: bool) -> InputSpec:
    """What a student's graph is given."""
    return InputSpec(student.input_size, tuple(student.mean), tuple(student.std), baked, uint8)


class Normalised(nn.Module):
    """A model with its normalisation in front: (B, 3, H, W) in 0..1, or bytes -> (B, K)."""

    factor: Tensor
    offset: Tensor

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model = model
        scale = 1 / 255 if spec.uint8 else 1.0
        mean, std = (torch.tensor(item).reshape(1, 3, 1, 1) for item in (spec.mean, spec.std))
        # One multiplication and one addition: x scale / std - mean / std.
        self.register_buffer("factor", scale / std)
        self.register_buffer("offset", -mean / std)

    def forward(self, images: Tensor) -> Any:
        """Normalise, then run the model."""
        return self.model(images.float() * self.factor + self.offset)


class Embedded(nn.Module):
    """A backbone with its embedding head: (B, 3, H, W) -> features (B, C), embedding (B, D)."""

    def __init__(self, backbone: nn.Module, head: EmbeddingHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(*head.weight_DC.shape[::-1])
        self.head.load_state_dict({"weight": head.weight_DC, "bias": head.bias_D})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run both."""
        features = self.backbone(images)
        return features, self.head(features)


def graph_module(student: Student, spec: InputSpec, head: EmbeddingHead | None = None) -> nn.Module:
    """What is exported, in eval mode: the plain model with the head of its task or its embedding head.

    Args:
        spec: whether the normalisation is part of the graph.
        head: of a backbone; its output is the second one.
    """
    plain = student.plain() if head is None else Embedded(student.plain(), head)
    model = Normalised(plain, spec) if spec.baked else plain
    return model.eval()


def describe_preprocessing(
    spec: InputSpec,
    rule: ViewRule,
    label_names: list[str],
    *,
    shape: Sequence[int],
    output: str = "logits",
    meaning: str,
) -> dict[str, Any]:
    """The rule, step by step, as JSON values."""
    height, width = rule.size
    steps: list[dict[str, Any]] = [
        {"step": "decode", "do": "decode the picture, turn it upright (EXIF orientation), convert it to RGB, 8 bits"},
        _crop_step(rule),
        {
            "step": "resize",
            "do": f"resize that region to width x height with {rule.interpolation} resampling and antialiasing (the "
            "filter grows with the reduction, as Pillow does); no other scaling before or after",
            "width": spec.size[1], "height": spec.size[0], "interpolation": rule.interpolation, "antialias": True,
        },
    ]  # fmt: skip
    if not spec.uint8:
        steps.append({"step": "scale", "do": "divide every byte by 255", "factor": 1 / 255})
    if not spec.baked:
        steps.append(
            {
                "step": "normalise", "do": "per channel: (value - mean) / std",
                "mean": list(spec.mean), "std": list(spec.std), "channels": ["R", "G", "B"],
            }
        )  # fmt: skip
    return {
        "format_version": 1,
        "input": {
            "name": "image",
            "shape": ["batch", 3, *spec.size],
            "layout": "NCHW",
            "channel_order": "RGB",
            "dtype": "uint8" if spec.uint8 else "float32",
            "range": "0..255" if spec.uint8 else "0..1" if spec.baked else "normalised",
            "normalisation_in_graph": spec.baked,
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "steps": steps,
        "output": {
            "name": output,
            "shape": ["batch", *shape],
            "do": meaning,
            "label_names": label_names,
        },
        "region_size": [height, width],
    }


def _crop_step(rule: ViewRule) -> dict[str, Any]:
    out_h, out_w = rule.size
    values = {
        "step": "crop", "crop_mode": rule.crop_mode, "crop_pct": rule.crop_pct, "reference_width": out_w,
        "reference_height": out_h,
    }  # fmt: skip
    if rule.crop_mode == "squash":
        text = (
            f"with rw = floor({out_w} / {rule.crop_pct}) and rh = floor({out_h} / {rule.crop_pct})"
        )
    elif out_h == out_w:
        text = (
            f"with s = floor({out_h} / {rule.crop_pct}): rw = s and rh = int(s * h / w) if w <= h, else "
            "rw = int(s * w / h) and rh = s"
        )
    else:
        text = (
            f"with th = floor({out_h} / {rule.crop_pct}), tw = floor({out_w} / {rule.crop_pct}) and "
            "k = min(h / th, w / tw): rw = round(w / k), rh = round(h / k)"
        )
    values["do"] = (
        f"of a picture of w x h pixels take the central region: {text}; rw = max(rw, {out_w}), rh = max(rh, {out_h}); "
        f"left = round((rw - {out_w}) / 2) * w / rw, top = round((rh - {out_h}) / 2) * h / rh, "
        f"width = {out_w} * w / rw, height = {out_h} * h / rh, in pixels with fractions, cut at the picture's edge"
    )
    return values


def test_picture() -> Image.Image:
    """A picture made of numbers, 200 x 150: waves of several lengths in each channel, so that every step shows."""
    y, x = np.mgrid[0:150, 0:200].astype(np.float64)
    waves = [
        np.sin(x / 9) * np.cos(y / 13), np.sin((x + y) / 21), np.cos(x / 31) * np.sin(y / 5),
    ]  # fmt: skip
    pixels = np.stack([127.5 + 110 * wave for wave in waves], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def reference_pixels(spec: InputSpec, rule: ViewRule) -> Pixels:
    """(1, 3, H, W): the test picture, cut and resized."""
    image = test_picture()
    box = canonical_box(
        image.width,
        image.height,
        size=rule.size,
        crop_pct=rule.crop_pct,
        crop_mode=rule.crop_mode,
    )
    shown = cut(image, box, size=spec.size, interpolation=rule.interpolation, mirrored=False)
    return np.ascontiguousarray(np.asarray(shown).transpose(2, 0, 1)[None])


def write_preprocessing(
    folder: Path,
    spec: InputSpec,
    rule: ViewRule,
    *,
    label_names: list[str],
    logits: dict[str, npt.ArrayLike],
    meaning: str = "",
    output: str = "logits",
) -> None:
    """Write the rule and its test vectors.

    Args:
        logits: what each file answers to the test picture.
    """
    pixels = reference_pixels(spec, rule)
    answers = {name: np.asarray(values, np.float32) for name, values in logits.items()}
    shape = next(iter(answers.values())).shape
    values = describe_preprocessing(
        spec, rule, label_names, shape=shape, meaning=meaning, output=output
    )
    values["reference"] = {
        "picture": PICTURE,
        "crop": CROP,
        "input": TENSOR,
        "input_format": f"shape [1, 3, {spec.size[0]}, {spec.size[1]}], "
        + ("bytes" if spec.uint8 else "little-endian float32")
        + ", row-major",
        "logits": {name: values.ravel()[:MOST_VALUES].tolist() for name, values in answers.items()},
        "tolerance": "floating-point files: 1e-3 from input.raw; more from picture.png, by how your resize differs",
    }
    write_bytes(folder / PICTURE, _png(test_picture()))
    write_bytes(folder / CROP, _png(Image.fromarray(pixels[0].transpose(1, 2, 0))))
    fed = spec.feed(pixels)
    write_bytes(folder / TENSOR, fed.astype(fed.dtype.newbyteorder("<")).tobytes())
    write_bytes(folder / NAME, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

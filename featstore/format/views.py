"""Views: which part of an image the teacher saw, as a pure function, and its application.

A view is a box in pixel coordinates of the upright image (after EXIF orientation) and a mirror flag:

- ``canonical``: the region of the teacher's own evaluation transform (resize the shorter side, centre crop).
- ``seeded`` number v: a random resized crop that depends on nothing but (store seed, sample_id, v) and the size
  of the image. It can be computed again from the store's seed, at any output size, so crops are not stored.

Pillow is only needed to apply a view.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from featstore.errors import ViewMismatch

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]
"""(left, upper, right, lower) in pixels of the upright image; fractions are allowed."""

CropMode = Literal["center", "squash"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]


MOST_VIEWS = 10_000  # most views of one store; the largest published ones have 500


class View(BaseModel):
    """One index of the view axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["canonical", "seeded"]
    number: int = Field(default=0, ge=0)
    """Number of the seeded crop; always 0 for the canonical view."""
    mirrored: bool = False

    def __str__(self) -> str:
        name = "canonical" if self.kind == "canonical" else f"seeded {self.number}"
        return f"{name}, mirrored" if self.mirrored else name


class ViewSet(BaseModel):
    """The views of a store, in the order of the view axis of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    scale: tuple[float, float] = (0.35, 1.0)
    """Share of the image's area that a seeded crop covers, smallest and largest."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a seeded crop, smallest and largest."""
    views: tuple[View, ...] = Field(default=(View(kind="canonical"),), max_length=MOST_VIEWS)

    @model_validator(mode="after")
    def _check(self) -> "ViewSet":
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale {self.scale} must satisfy 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must satisfy 0 < low <= high")
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError("views must be a non-empty list without repetition")
        return self

    def __len__(self) -> int:
        return len(self.views)

    def index(self, *, kind: str | None = None, mirrored: bool | None = None) -> list[int]:
        """Columns of the view axis that match. Raises ViewMismatch: none does; the message lists what is stored."""
        found = [
            i
            for i, view in enumerate(self.views)
            if kind in (None, view.kind) and mirrored in (None, view.mirrored)
        ]
        if not found:
            wanted = " ".join(part for part in ("mirrored" if mirrored else "", kind or "") if part)
            stored = "; ".join(str(view) for view in self.views)
            raise ViewMismatch(
                f"a {wanted} view was asked for, but the store holds only: {stored}. A crop or a mirror "
                "image that the teacher never saw has no stored feature. Extract a store with that view "
                "(--views.seeded K, --views.mirrored true), or switch the augmentation off."
            )
        return found


def make_views(*, canonical: bool, seeded: int, mirrored: bool) -> tuple[View, ...]:
    """List the views: the canonical one, then the seeded crops; with ``mirrored`` each is there twice."""
    plain = [View(kind="canonical")] if canonical else []
    plain += [View(kind="seeded", number=number) for number in range(seeded)]
    if not mirrored:
        return tuple(plain)
    return tuple(
        View(kind=view.kind, number=view.number, mirrored=flag)
        for view in plain
        for flag in (False, True)
    )


def canonical_box(
    width: int, height: int, *, size: tuple[int, int], crop_pct: float, crop_mode: CropMode
) -> Box:
    """Return the region that "resize, then centre crop" keeps, so that one resize does both.

    Args:
        width: Of the upright image, pixels.
        height: Of the upright image, pixels.
        size: (height, width) of the teacher's input, pixels.
        crop_pct: Share of the resized image that the crop keeps, per side (timm's meaning).
        crop_mode: ``center`` keeps the aspect ratio and crops; ``squash`` resizes both sides freely.
    """
    out_h, out_w = size
    if crop_mode == "squash":
        resized_w, resized_h = math.floor(out_w / crop_pct), math.floor(out_h / crop_pct)
    elif out_h == out_w:
        # torchvision's integer rule: the shorter side becomes the target, the longer one is truncated.
        short = math.floor(out_h / crop_pct)
        if width <= height:
            resized_w, resized_h = short, int(short * height / width)
        else:
            resized_w, resized_h = int(short * width / height), short
    else:
        target_h, target_w = math.floor(out_h / crop_pct), math.floor(out_w / crop_pct)
        ratio = min(height / target_h, width / target_w)
        resized_h, resized_w = round(height / ratio), round(width / ratio)
    # An image that is much longer than wide can end up below the target by a pixel; never cut outside.
    resized_w, resized_h = max(resized_w, out_w), max(resized_h, out_h)
    left = round((resized_w - out_w) / 2)
    upper = round((resized_h - out_h) / 2)
    step_x, step_y = width / resized_w, height / resized_h
    return (
        left * step_x,
        upper * step_y,
        min((left + out_w) * step_x, width),
        min((upper + out_h) * step_y, height),
    )


def seeded_box(
    width: int,
    height: int,
    *,
    seed: int,
    sample_id: str,
    number: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Return crop ``number`` of a sample: a random resized crop as a pure function.

    Four uniform numbers come from SHA-256 of (seed, number, sample_id), so that any language can repeat them
    (docs/format.md). Area share uniform in ``scale``, log aspect ratio uniform in ``ratio``, position uniform;
    a side that would be longer than the image is cut to it.
    """
    area_u, ratio_u, x_u, y_u = uniform_numbers(seed=seed, sample_id=sample_id, number=number)
    area = width * height * (scale[0] + area_u * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + ratio_u * (high - low))
    box_w = min(float(width), max(1.0, math.sqrt(area * aspect)))
    box_h = min(float(height), max(1.0, math.sqrt(area / aspect)))
    left, upper = x_u * (width - box_w), y_u * (height - box_h)
    return (left, upper, min(left + box_w, width), min(upper + box_h, height))


def uniform_numbers(*, seed: int, sample_id: str, number: int) -> tuple[float, float, float, float]:
    """Four numbers in [0, 1): the little-endian 64-bit words of a SHA-256, shifted right by 11 bits, over 2**53.

    The hashed text is ``featstore-view-1|seed|number|sample_id`` in UTF-8.
    """
    digest = hashlib.sha256(f"featstore-view-1|{seed}|{number}|{sample_id}".encode()).digest()
    words = [int.from_bytes(digest[i : i + 8], "little") >> 11 for i in range(0, 32, 8)]
    a, b, c, d = (word / 2**53 for word in words)
    return a, b, c, d


def view_box(
    view: View,
    view_set: ViewSet,
    *,
    sample_id: str,
    width: int,
    height: int,
    size: tuple[int, int],
    crop_pct: float,
    crop_mode: CropMode,
) -> Box:
    """Return the box of one view of one sample; ``size``, ``crop_pct`` and ``crop_mode`` are the *teacher's*."""
    if view.kind == "canonical":
        return canonical_box(width, height, size=size, crop_pct=crop_pct, crop_mode=crop_mode)
    return seeded_box(
        width,
        height,
        seed=view_set.seed,
        sample_id=sample_id,
        number=view.number,
        scale=view_set.scale,
        ratio=view_set.ratio,
    )


def cut(
    image: "Image.Image",
    box: Box,
    *,
    size: tuple[int, int],
    interpolation: Interpolation,
    mirrored: bool,
) -> "Image.Image":
    """Cut a box out of an upright image, resize it to ``size`` (height, width) and mirror it if asked."""
    from PIL import Image

    methods = {
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "lanczos": Image.Resampling.LANCZOS,
        "nearest": Image.Resampling.NEAREST,
    }
    view = image.resize((size[1], size[0]), methods[interpolation], box=box)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else view


def describe_views(views: Sequence[View]) -> str:
    """One line: ``canonical; seeded 0; seeded 0, mirrored``."""
    return "; ".join(str(view) for view in views)

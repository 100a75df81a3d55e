"""Changed pictures: pure functions of a picture, options and 64 random bits, whatever the process and the order.

Photometric changes move no pixel, so that a picture may still be compared to the stored feature of its view. Strong
copies are for the partners alone: no teacher saw them.
"""

# H W sides in pixels; a picture is (H, W, 3) uint8

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter
from timm.data.auto_augment import AugmentOp, rand_augment_ops
from torchvision.transforms.v2.functional import adjust_hue

from distill.config import AugmentConfig, PhotometricConfig

Picture = npt.NDArray[np.uint8]

OPERATIONS = (
    "AutoContrast",
    "BrightnessIncreasing",
    "ColorIncreasing",
    "ContrastIncreasing",
    "Equalize",
    "PosterizeOriginal",
    "Rotate",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "SolarizeIncreasing",
    "TranslateXRel",
    "TranslateYRel",
)
"""timm's names of RandAugment's operations: those of FixMatch (Sohn et al. 2020, table 12) less the identity."""

GRAY = 128  # paints over what cutout takes, and what a rotation or shift uncovers
BLUR = (0.1, 2.0)  # range of the blur's standard deviation in pixels (SimCLR, Chen et al. 2020)


def photometric(pixels: Picture, config: PhotometricConfig, bits: int) -> Picture:
    """Change brightness, contrast and saturation, each by a factor uniform in 1 +- jitter; then hue, colour, sharpness.

    Args:
        pixels: View that the teacher saw, at the student's size.
        config: Strengths of the changes; the draws of one do not depend on the others.
        bits: Seed of all random draws, 64 bits.

    Returns:
        A picture of the same shape; the very same one if all changes are off.
    """
    if not (config.jitter or config.hue or config.grayscale or config.blur):
        return pixels
    generator = np.random.default_rng(bits)
    factors = generator.uniform(-1, 1, 4)
    image = Image.fromarray(pixels)
    if config.jitter:
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhance, factor in zip(enhancers, factors, strict=False):
            image = enhance(image).enhance(1 + config.jitter * factor)
    if config.hue:
        image = adjust_hue(image, config.hue * factors[3])
    chances = generator.uniform(size=2)
    if chances[0] < config.grayscale:
        image = image.convert("L").convert("RGB")
    if chances[1] < config.blur:
        image = image.filter(ImageFilter.GaussianBlur(generator.uniform(*BLUR)))
    return np.asarray(image)


def strongly(pixels: Picture, config: AugmentConfig, bits: int) -> Picture:
    """Shift, mirror, RandAugment (Cubuk et al. 2020, timm's), cutout (DeVries and Taylor 2017), in this order.

    Args:
        pixels: View to change.
        bits: Seed of all random draws, 64 bits.

    Returns:
        A picture of the same shape.
    """
    with _seeded(bits):
        moved = _moved(pixels, config)
        if config.ops:
            image = Image.fromarray(moved)
            for operation in random.choices(_operations(config.magnitude), k=config.ops):
                image = operation(image)
            moved = np.asarray(image)
        return _cut_out(moved, config.cutout) if config.cutout else moved


@contextmanager
def _seeded(bits: int) -> Iterator[None]:
    """Start Python's generator, which timm's operations draw from, from the bits; afterwards it is as it was before."""
    state = random.getstate()
    random.seed(bits)
    try:
        yield
    finally:
        random.setstate(state)


@lru_cache
def _operations(magnitude: float) -> list[AugmentOp]:
    """All operations, each of which draws its magnitude anew at every call."""
    settings: dict[str, Any] = {
        "img_mean": (GRAY,) * 3,
        "interpolation": Image.Resampling.BILINEAR,
        "translate_pct": 0.3,
        "magnitude_std": float("inf"),
    }
    return rand_augment_ops(magnitude, 1.0, settings, list(OPERATIONS))  # type: ignore[no-any-return]


def _moved(pixels: Picture, config: AugmentConfig) -> Picture:
    if config.translate:
        rows, columns = (_shifted(side, config.translate) for side in pixels.shape[:2])
        pixels = pixels.take(rows, 0).take(columns, 1)
    if config.flip and random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels


def _shifted(side: int, part: float) -> npt.NDArray[np.int64]:
    """(side,) places that a random shift reads from; those beyond a border are reflected at it."""
    most = round(side * part)
    places = np.abs(np.arange(side) + random.randint(-most, most))
    return side - 1 - np.abs(side - 1 - places)  # type: ignore[no-any-return]


def _cut_out(pixels: Picture, part: float) -> Picture:
    """Paint over a square with its centre anywhere in the picture and a side uniform up to a part of the picture's."""
    height, width = pixels.shape[:2]
    half = random.uniform(0, part) * min(height, width) / 2
    y, x = random.uniform(0, height), random.uniform(0, width)
    changed = pixels.copy()
    changed[
        max(0, round(y - half)) : round(y + half), max(0, round(x - half)) : round(x + half)
    ] = GRAY
    return changed

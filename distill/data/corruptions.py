"""Pictures made worse on purpose, to see what a student's accuracy survives.

Eight kinds in five severities, after ImageNet-C (Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness
to Common Corruptions and Perturbations") in kind, not in its constants, which are meant for 224 pixels: pictures here
are corrupted at the student's input size, often 32 to 96 pixels. Lengths are therefore shares of the picture's shorter
side, and noise, contrast and JPEG begin milder. Numbers are comparable between students measured here, and not with
published ImageNet-C numbers.
"""

# H W picture in pixels, P points of a blur

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from distill.config import CorruptionName
from distill.data.schedule import random_bits

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Corruption = Callable[[Floats, float, np.random.Generator], Floats]

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(picture: Floats, deviation: float, rng: np.random.Generator) -> Floats:
    """Add normal noise of a standard deviation, in units of the range 0 to 1."""
    return picture + deviation * rng.standard_normal(picture.shape)


def shot_noise(picture: Floats, photons: float, rng: np.random.Generator) -> Floats:
    """Count photons: a value v becomes Poisson(v photons) / photons."""
    return rng.poisson(picture * photons) / photons


def defocus_blur(picture: Floats, radius: float, rng: np.random.Generator) -> Floats:
    """Average over a disc whose radius is a share of the shorter side."""
    reach = radius * min(picture.shape[:2])
    # 32 rings of equal area with 32 points each fill a disc evenly.
    rings = reach * np.sqrt((np.arange(32) + 0.5) / 32)
    angles = 2 * np.pi * np.arange(32) / 32
    points = np.stack([np.outer(rings, np.cos(angles)), np.outer(rings, np.sin(angles))], axis=-1)
    return _blur(picture, points.reshape(-1, 2))


def motion_blur(picture: Floats, length: float, rng: np.random.Generator) -> Floats:
    """Average along a line in a random direction; its length is a share of the shorter side."""
    angle = rng.uniform(0, np.pi)
    reach = length * min(picture.shape[:2])
    along = reach * np.linspace(-0.5, 0.5, max(9, int(4 * reach)))
    return _blur(picture, along[:, None] * [np.sin(angle), np.cos(angle)])


def contrast(picture: Floats, factor: float, rng: np.random.Generator) -> Floats:
    """Draw every channel towards its mean over the picture."""
    mean = picture.mean((0, 1))
    return mean + factor * (picture - mean)  # type: ignore[no-any-return]


def brightness(picture: Floats, amount: float, rng: np.random.Generator) -> Floats:
    """Raise the value (HSV) by an amount, with hue and saturation as they are."""
    value = picture.max(2, keepdims=True)
    raised = np.minimum(value + amount, 1)
    scale = raised / np.where(value > 0, value, 1)
    return np.where(value > 0, picture * scale, raised)  # type: ignore[no-any-return]


def jpeg(picture: Floats, quality: float, rng: np.random.Generator) -> Floats:
    """Compress as JPEG and decode again."""
    buffer = io.BytesIO()
    _image(picture).save(buffer, "JPEG", quality=int(quality))
    return _floats(Image.open(buffer))


def pixelate(picture: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Shrink both sides to a share by averaging, and enlarge again without smoothing."""
    image = _image(picture)
    small = (max(1, round(share * image.width)), max(1, round(share * image.height)))
    shrunk = image.resize(small, Image.Resampling.BOX)
    return _floats(shrunk.resize(image.size, Image.Resampling.NEAREST))


CORRUPTIONS: dict[CorruptionName, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "shot_noise": (shot_noise, (200, 100, 50, 25, 12)),
    "defocus_blur": (defocus_blur, (0.010, 0.016, 0.022, 0.030, 0.040)),
    "motion_blur": (motion_blur, (0.05, 0.075, 0.10, 0.14, 0.18)),
    "contrast": (contrast, (0.6, 0.45, 0.3, 0.2, 0.12)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "jpeg": (jpeg, (60, 40, 25, 15, 8)),
    "pixelate": (pixelate, (0.8, 0.65, 0.5, 0.4, 0.3)),
}
"""By name: the function, and its parameter for severities 1 to 5 (our choice)."""


def corrupt(pixels: Pixels, kind: CorruptionName, severity: int, *, seed: str) -> Pixels:
    """Make one picture worse; a pure function of its arguments.

    Args:
        pixels: (H, W, 3).
        kind: Key of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: Seed of the picture, such as its sample id. All severities draw the same noise and direction.

    Returns:
        (H, W, 3).
    """
    function, parameters = CORRUPTIONS[kind]
    rng = np.random.default_rng(random_bits("corruption", kind, seed))
    return _bytes(function(pixels / 255.0, parameters[severity - 1], rng))


def _blur(picture: Floats, points_P2: Floats) -> Floats:
    """Average a picture over its shifted copies; the border is mirrored.

    Args:
        picture: (H, W, 3).
        points_P2: shifts (down, right) in pixels, also between two pixels.
    """
    from scipy.signal import fftconvolve  # seconds to import

    reach = int(np.ceil(np.abs(points_P2).max())) + 1
    grid = np.arange(-reach, reach + 1)
    # A shift between two pixels is shared out between them by distance (bilinear).
    weights = [np.clip(1 - np.abs(points_P2[:, axis, None] - grid), 0, None) for axis in (0, 1)]
    kernel = weights[0].T @ weights[1] / len(points_P2)
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    blurred: Floats = fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))
    return blurred


def _bytes(picture: Floats) -> Pixels:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _floats(image: Image.Image) -> Floats:
    return np.asarray(image.convert("RGB")) / 255.0


def _image(picture: Floats) -> Image.Image:
    return Image.fromarray(_bytes(picture))

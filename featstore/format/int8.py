"""Quantisation to int8: scales per row and per channel, and the rounding error.

ViT features have outlier channels, so a scale per row alone wastes the range. With each channel standardised first, the
nearest neighbour is unchanged for 99 rows of 100 (docs/performance.md).
"""

# n rows, ... any axes between, C channels

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featstore.files.array_types import Array

Scheme = Literal["row", "channel", "channel_row"]

TILE = 16
"""Rows that are multiplied by their channels' scales in one loop; twice as fast as row by row at 1,024 channels."""

COMPILED_FROM = 65_536
"""Codes from which on the compiled loop is used: importing numba and compiling take a second, once per process."""

LARGEST = 127  # codes are -127 to 127: symmetric, so zero is exact


@dataclass(frozen=True)
class Channels:
    """What each channel is divided by after its offset was taken off."""

    scale: npt.NDArray[np.float32]  # (C,) float32, above zero
    offset: npt.NDArray[np.float32]  # (C,) float32

    @cached_property
    def tiles(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Scale and offset repeated, (TILE, C) each: numpy pays for every inner loop, so loops are made longer."""
        return np.tile(self.scale, (TILE, 1)), np.tile(self.offset, (TILE, 1))


@dataclass(frozen=True)
class RoundingError:
    """What a narrower type costs, over the rows of a sample that are not zero."""

    relative_l2: float  # mean of |x - x'| / |x|
    # cosine_mean, cosine_worst: of x and x'
    cosine_mean: float
    cosine_worst: float


@dataclass(frozen=True)
class Calibration(RoundingError):
    """Scales from a sample of rows, and the error on that sample."""

    channels: Channels | None  # None with scheme "row"
    sample_rows: int  # rows of the sample


def calibrate(sample: Array, scheme: Scheme) -> Calibration:
    """Measure scales and their error on some rows.

    Args:
        sample: (n, ..., C) finite floating point numbers, n >= 1.
    """
    values = sample.astype(np.float32).reshape(-1, sample.shape[-1])
    channels = None
    if scheme != "row":
        offset = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = values - offset
        spread = (
            np.abs(centred).max(axis=0) / LARGEST
            if scheme == "channel"
            else np.sqrt((centred.astype(np.float64) ** 2).mean(axis=0)).astype(np.float32)
        )
        # A channel that never moves: any scale gives it back.
        channels = Channels(np.where(spread > 0, spread, 1).astype(np.float32), offset)
    codes, scale = quantise(values, scheme, channels)
    error = rounding_error(values, dequantise(codes, scale, channels))
    return Calibration(**vars(error), channels=channels, sample_rows=len(sample))


def rounding_error(values: Array, back: Array) -> RoundingError:
    """Compare numbers to what is read back of them.

    Args:
        values: (..., C) finite.
        back: The same shape; compared row by row of the last axis.
    """
    exact: Array = values.astype(np.float64).reshape(-1, values.shape[-1])
    found: Array = back.astype(np.float64).reshape(exact.shape)
    length = np.linalg.norm(exact, axis=1)
    usable = length > 0
    if not usable.any():
        return RoundingError(0.0, 1.0, 1.0)
    exact, found, length = exact[usable], found[usable], length[usable]
    error = np.linalg.norm(exact - found, axis=1) / length
    other = np.linalg.norm(found, axis=1)
    cosine = (exact * found).sum(axis=1) / (length * np.where(other > 0, other, 1))
    return RoundingError(
        float(error.mean()), float(min(1.0, cosine.mean())), float(min(1.0, cosine.min()))
    )


def quantise(
    values: Array, scheme: Scheme, channels: Channels | None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32] | None]:
    """Turn numbers into codes.

    Args:
        values: (..., C) finite.
        scheme: With or without a scale per row.
        channels: From ``calibrate``; None with scheme "row".

    Returns:
        Codes (..., C), and the scale of each last axis (...), None with scheme "channel".
    """
    units: Array = values.astype(np.float32)
    if channels is not None:
        units = (units - channels.offset) / channels.scale
    scale = None
    if scheme != "channel":
        scale = np.abs(units).max(axis=-1) / np.float32(LARGEST)
        units = units / np.where(scale > 0, scale, 1)[..., None]
    codes = np.clip(np.rint(units), -LARGEST, LARGEST).astype(np.int8)
    return codes, scale


def dequantise(
    codes: npt.NDArray[np.int8],
    scale: npt.NDArray[np.float32] | None,
    channels: Channels | None,
    *,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Turn codes into numbers again: code * row scale * channel scale + channel offset.

    Args:
        codes: (..., C).
        scale: (...), or None.
        channels: Or None.
        out: (..., C) contiguous float32 to write into; made if not given.
    """
    if out is None:
        out = np.empty(codes.shape, dtype=np.float32)
    if scale is not None and channels is not None and codes.size >= COMPILED_FROM:
        loop, shape = _compiled_loop(), (-1, codes.shape[-1])
        if loop is not None:
            flat = codes.reshape(shape), scale.reshape(-1)
            loop(*flat, channels.scale, channels.offset, out.reshape(shape))
            return out
    out[...] = codes
    if scale is not None:
        out *= scale[..., None]
    if channels is not None:
        rows = out.reshape(-1, out.shape[-1])
        whole = len(rows) // TILE * TILE
        tiled = rows[:whole].reshape(-1, TILE, rows.shape[1])
        scale_tile, offset_tile = channels.tiles
        for part, factor, offset in (
            (tiled, scale_tile, offset_tile),
            (rows[whole:], channels.scale, channels.offset),
        ):
            part *= factor
            part += offset
    return out


@cache
def _compiled_loop() -> Callable[..., Any] | None:
    """One pass in place of numpy's four, a sixth of the time and the same bits; None without the package numba."""
    try:
        import numba
    except ImportError:
        return None
    compiled: Callable[..., Any] = numba.njit(nogil=True)(_loop)
    return compiled


def _loop(codes: Array, scale: Array, channel_scale: Array, offset: Array, out: Array) -> None:
    for row in range(codes.shape[0]):
        factor = scale[row]
        for channel in range(codes.shape[1]):
            value = np.float32(codes[row, channel]) * factor
            out[row, channel] = value * channel_scale[channel] + offset[channel]

"""Records that pseudo-samples are drawn from: noise, or mean and covariance of images, per class or of all.

A record is a small safetensors file. Picture ``seed`` of a class is a function of the record, the name of the class and
the seed, in integer arithmetic alone, so that every machine draws the same bytes.
"""

# K classes, 1 where the record is of all images; P numbers of a picture (height, width, channels); R rank

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Array
from featstore.format.artefacts import pack, pack_texts, unpack_texts

NAME = "pseudo_samples"
"""Name of the artefact that holds the record of a store; merging puts a prefix before it."""

LEAST = 50
"""Fewest images of a class that are measured: the mean of few images is nearly one of them."""

LEAST_PER_RANK = 10
"""Fewest images per unit of rank: directions of fewer images are nearly single images."""

ALL = "all"
"""Second part of the ids of pseudo-samples without a class."""

Kind = Literal["noise", "moments", "covariance"]

CONDITION_MEAN = (127.5 / 255, 0.0, 0.0)
CONDITION_STD = (32 / 255, 1 / 255, 1 / 255 / 256)
"""Normalisation of noise with classes: red becomes standard normal noise, green and blue add up to the class."""

MOST_SIDE = 256  # pixels
MOST_VALUE = 4096.0  # of mean, deviation and factor, so that sums fit into 64 bits
UNIFORM = 12  # 16-bit numbers whose sum is one normal number, of variance 2^32 and mean UNIFORM (2^16 - 1) / 2


@dataclass(frozen=True, eq=False)
class PseudoSamples:
    """x = mean + deviation * z + sum over R of factor * z', z and z' standard normal; rounded and cut to 0..255."""

    kind: Kind
    size: tuple[int, int]  # (height, width) of a picture, pixels
    channels: int  # 1 (grey) or 3 (RGB)
    classes: tuple[str, ...]  # (K,) names; () where the record is of all images
    counts: tuple[int, ...]  # (K,) images that were measured; 0 for noise
    mean: npt.NDArray[np.float32]  # (K, P)
    deviation: npt.NDArray[np.float32]  # (K, P), of what the factor does not describe
    factor: npt.NDArray[np.float32]  # (K, R, P), rows at right angles; R = 0 without covariance

    def __post_init__(self) -> None:
        """Check shapes and values. Raises ConfigError: says what does not fit."""
        height, width = self.size
        rows, numbers = len(self.counts), height * width * self.channels
        _require(self.kind in get_args(Kind), f"kind {self.kind!r}")
        _require(min(self.size) >= 1 and max(self.size) <= MOST_SIDE, f"size {self.size}")
        _require(self.channels in (1, 3), f"{self.channels} channels; expected 1 or 3")
        _require(
            rows == max(1, len(self.classes)) and len({*self.classes}) == len(self.classes),
            f"counts of {rows} classes, names of {len(self.classes)}: {shorten(self.classes)}",
        )
        shapes = {"mean": (rows, numbers), "deviation": (rows, numbers)}
        shapes["factor"] = (rows, *self.factor.shape[1:2], numbers)
        for name, shape in shapes.items():
            values: Array = getattr(self, name)
            _require(
                values.shape == shape and values.dtype == np.float32,
                f"{name} is {values.dtype} of shape {values.shape}, expected float32 of {shape}: {rows} classes, "
                f"{height} x {width} pixels, {self.channels} channels",
            )
            _require(
                bool((np.abs(values) <= MOST_VALUE).all()),  # false for NaN too
                f"{name} has values that are not finite, or beyond {MOST_VALUE:g}",
            )
        _require(self.rank <= numbers, f"rank {self.rank} of {numbers} numbers")
        _require(bool((self.deviation >= 0).all()), "deviation is negative")

    @property
    def rank(self) -> int:
        return int(self.factor.shape[1])

    @property
    def meaning(self) -> str:
        """For the manifest, the card and the terminal: what it is of, and what it may reveal."""
        colour = "grey" if self.channels == 1 else "RGB"
        size = f"{self.size[0]} x {self.size[1]} pixels, {colour}"
        if self.kind == "noise":
            of = f" for {len(self.classes)} classes" if self.classes else ""
            return f"pseudo-samples: noise{of}, {size}; holds nothing of any image"
        of = f"{len(self.classes)} classes" if self.classes else "all images"
        how = f"covariance of rank {self.rank}" if self.rank else "variances"
        return (
            f"pseudo-samples: mean and {how} of {of}, {size}, from {min(self.counts):,} images or more; may reveal "
            "what images of a class share, and single images of a small class"
        )

    def draw(self, sample_id: str) -> bytes:
        """Draw one picture as a binary PGM or PPM file."""
        name, seed = self.parse(sample_id)
        row = self.classes.index(name) if self.classes else 0
        mean, deviation, factor = (values[row] for values in self._fixed)
        key = f"{NAME} 1\0{name}\0{seed}".encode()
        drawn = hashlib.shake_256(key).digest(2 * UNIFORM * (len(mean) + self.rank))
        uniform = np.frombuffer(drawn, "<u2").reshape(-1, UNIFORM)
        normal = (
            uniform.sum(axis=1, dtype=np.int64) - UNIFORM * (2**16 - 1) // 2
        )  # 16 bits after the point
        near, far = normal[: len(mean)], normal[len(mean) :]
        exact = (mean << 16) + deviation * near + far @ factor  # 24 bits after the point
        pixels = ((exact + (1 << 23)) >> 24).clip(0, 255).astype(np.uint8)
        header = f"P{5 if self.channels == 1 else 6}\n{self.size[1]} {self.size[0]}\n255\n"
        return header.encode() + bytes(pixels.tobytes())

    @cached_property
    def _fixed(self) -> tuple[Array, Array, Array]:
        """Mean, deviation and factor with 8 bits after the point, int64."""
        mean, deviation, factor = (
            np.rint(values.astype(np.float64) * 256).astype(np.int64)
            for values in (self.mean, self.deviation, self.factor)
        )
        return mean, deviation, factor

    def id_of(self, name: str, seed: int) -> str:
        """Id of a pseudo-sample: kind, class (or all) and seed."""
        return f"{self.kind}/{name}/{seed:08d}"

    def parse(self, sample_id: str) -> tuple[str, int]:
        """Class and seed of an id. Raises ConfigError: it is not one of this record's."""
        kind, _, rest = sample_id.partition("/")
        name, _, seed = rest.rpartition("/")
        if kind != self.kind or name not in (self.classes or (ALL,)) or not seed.isdecimal():
            raise ConfigError(
                f"{sample_id!r} is no pseudo-sample of this record; expected {self.id_of('CLASS', 0)!r} with one of "
                f"{shorten(self.classes or (ALL,))}."
            )
        return name, int(seed)

    def to_bytes(self) -> bytes:
        """The record's file."""
        described = {
            name: getattr(self, name) for name in ("kind", "size", "channels", "classes", "counts")
        }
        arrays = {name: getattr(self, name) for name in ("mean", "deviation", "factor")}
        if not self.rank:
            del arrays["factor"]
        return pack({**arrays, **pack_texts([json.dumps(described)])})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> "PseudoSamples":
        """The record of a file. Raises ConfigError: the file is none."""
        try:
            (text,) = unpack_texts(tensors)
            values: dict[str, Any] = json.loads(text)
            mean, deviation = tensors["mean"], tensors["deviation"]
            factor = tensors.get("factor", np.zeros((len(mean), 0, *mean.shape[1:]), np.float32))
            height, width = map(int, values["size"])
            return cls(
                kind=values["kind"],
                size=(height, width),
                channels=int(values["channels"]),
                classes=tuple(map(str, values["classes"])),
                counts=tuple(map(int, values["counts"])),
                mean=mean,
                deviation=deviation,
                factor=factor,
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"no record of pseudo-samples: {error!r}.") from None

    @classmethod
    def noise(cls, side: int, classes: Sequence[str] = ()) -> "PseudoSamples":
        """Noise in colour: grey level 127.5 with a standard deviation of 63.75 in every number.

        With classes, the input of a generator: red is 127.5 with a deviation of 32, green and blue hold the number of
        the class, see ``split_condition``.
        """
        _require(len(classes) <= 2**16, f"{len(classes)} classes; at most 65,536")
        mean = np.full((max(1, len(classes)), side * side, 3), 127.5, np.float32)
        deviation = mean * np.float32(0.5)
        if classes:
            numbers = np.arange(len(classes))[:, None]
            mean[..., 1], mean[..., 2] = numbers % 256, numbers // 256
            deviation[..., 0], deviation[..., 1:] = 32, 0
        flat = len(mean), 3 * side * side
        return cls(
            kind="noise",
            size=(side, side),
            channels=3,
            classes=tuple(classes),
            counts=(0,) * len(mean),
            mean=mean.reshape(flat),
            deviation=deviation.reshape(flat),
            factor=np.zeros((len(mean), 0, flat[1]), np.float32),
        )


def split_condition(images: Any) -> tuple[Any, Any]:
    """Noise and class of pictures of noise with classes.

    Args:
        images: (B, 3, H, W) tensor, normalised with ``CONDITION_MEAN`` and ``CONDITION_STD``.

    Returns:
        (B, 1, H, W) noise and (B,) int64 classes, those of the upper left pixel.
    """
    return images[:, :1], (images[:, 1, 0, 0] + images[:, 2, 0, 0]).round().long()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"record of pseudo-samples: {message}.")

"""Measure mean and covariance of images, as a record that pseudo-samples are drawn from."""

# n images of a class, P numbers of a picture, R rank

import numpy as np

from featstore.errors import ConfigError, DecodeError, SourceError, shorten
from featstore.files.array_types import Array
from featstore.format.pseudo_samples import LEAST, LEAST_PER_RANK, MOST_SIDE, PseudoSamples
from featstore.format.views import ViewSet
from featstore.sources.base import Source
from featstore.sources.load import ViewRule, decode, read_image

MOST_IMAGES = 5000
"""Most images of a class that are measured, evenly spaced in the order of the source."""


def measure_images(
    source: Source, *, side: int, rank: int = 0, per_class: bool = True, least: int = LEAST
) -> tuple[PseudoSamples, list[str]]:
    """Measure the images of a source, each class or all together.

    Args:
        side: height and width of a picture, pixels; images are cut to a square.
        rank: of the covariance; 0 keeps the variance of each number alone.
        per_class: whether every class is measured separately; images without a label are then left out.
        least: fewest images of a class.

    Returns:
        The record, and "id: reason" of every image that could not be used.

    Raises:
        ConfigError: too few images of a class, or too few for the rank; no labels; a side or rank out of range.
        SourceError: the disk, the network or the memory failed.
    """
    if not 1 <= side <= MOST_SIDE or rank < 0:
        raise ConfigError(
            f"--size {side} must lie between 1 and {MOST_SIDE}, --rank {rank} not be below 0."
        )
    groups = {"": range(len(source))} if not per_class else _rows_of_classes(source)
    rule = ViewRule(ViewSet(), (side, side), 1.0, "center", "bilinear")
    skipped: list[str] = []
    pictures = [_pictures(source, rows, rule, skipped) for rows in groups.values()]
    _check_counts(dict(zip(groups, map(len, pictures), strict=True)), rank, least, source.uri)
    grey = all((values == values[..., :1]).all() for values in pictures)
    measured = [
        _measure(values[..., :1] if grey else values, min(rank, side * side * (1 if grey else 3)))
        for values in pictures
    ]
    mean, deviation, factor = (
        np.stack(part).astype(np.float32) for part in zip(*measured, strict=True)
    )
    record = PseudoSamples(
        kind="covariance" if rank else "moments",
        size=(side, side),
        channels=1 if grey else 3,
        classes=tuple(groups) if per_class else (),
        counts=tuple(map(len, pictures)),
        mean=mean,
        deviation=deviation,
        factor=factor,
    )
    return record, skipped


def _rows_of_classes(source: Source) -> dict[str, Array]:
    if source.labels is None:
        raise ConfigError(
            f"{source.uri}: no image has a label. Measure all images together (--overall), or give a folder with one "
            "folder for each class."
        )
    return {name: np.flatnonzero(source.labels == k) for k, name in enumerate(source.class_names)}


def _pictures(source: Source, rows: Array | range, rule: ViewRule, skipped: list[str]) -> Array:
    """(n, side, side, 3) uint8 of the usable images among some rows."""
    step = max(1, -(-len(rows) // MOST_IMAGES))
    found = [np.zeros((0, *rule.size, 3), np.uint8)]
    for row in rows[::step]:
        name = source.sample_ids[row]
        try:
            image = decode(source, row, read_image(source, row))
            found.append(rule.cut(image, rule.views.views[0], sample_id=name)[None])
        except SourceError:
            raise
        except (DecodeError, OSError) as error:
            skipped.append(f"{name}: {error}")
    return np.concatenate(found)


def _check_counts(counts: dict[str, int], rank: int, least: int, uri: str) -> None:
    needed = max(least, LEAST_PER_RANK * rank if least else 0, 2)
    few = [f"{name or 'all'} ({count})" for name, count in counts.items() if count < needed]
    if few:
        raise ConfigError(
            f"{uri}: fewer than {needed} usable images in {len(few)} of {len(counts)} classes: {shorten(few)}. "
            f"Statistics of few images show the images themselves (rank {rank} needs {LEAST_PER_RANK} for each). Lower "
            "--rank, measure all images together (--overall), or, where the record stays with you, add --allow-few."
        )


def _measure(pictures: Array, rank: int) -> tuple[Array, Array, Array]:
    """Mean (P,), deviation (P,) and factor (R, P) of (n, ...) pictures."""
    values = pictures.reshape(len(pictures), -1).astype(np.float64)
    mean = values.mean(axis=0)
    values -= mean
    variance = (values**2).mean(axis=0)
    if not rank:
        return mean, np.sqrt(variance), np.zeros((0, len(mean)))
    power, directions = np.linalg.eigh(values.T @ values / len(values))
    factor = (directions[:, -rank:] * np.sqrt(power[-rank:].clip(0))).T
    return mean, np.sqrt((variance - (factor**2).sum(axis=0)).clip(0)), factor

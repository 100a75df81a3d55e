"""A map of the samples: their positions, nearest neighbours and cosines."""

# n samples, D numbers of a row, K neighbours

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from featstore.card.escape import plain
from featstore.card.statistics import read_vectors
from featstore.card.survey import Sample, class_name
from featstore.display.feature_map import PCA_WIDTH, embed
from featstore.display.parts import Block
from featstore.files.array_types import Rows
from featstore.format.manifest import Manifest
from featstore.reading.store import FeatureStore

Floats = npt.NDArray[np.float32]

NEIGHBOURS = 12  # K
LONGEST_ID = 300  # characters of an id or class name on the page
BLOCK_ROWS = 1024  # rows of cosines in memory at a time
MOST_BYTES = 512 * 2**20  # features in memory; of wide fields, fewer samples are mapped


@dataclass(frozen=True)
class Map:
    """Samples in two dimensions and their nearest neighbours."""

    field: str
    sample: Sample
    points: npt.NDArray[np.float64]  # (n, 2)
    neighbours: Rows  # (n, K) indices into the sample, nearest first
    cosines: Floats  # (n, K) cosines of the centred features


@dataclass(frozen=True)
class Explorer(Block):
    """A map with search, hover and click."""

    title: str
    # plotly's data and layout; the last three traces are empty, for search results, neighbours and the selected sample
    spec: dict[str, Any]
    data: dict[str, Any]  # of ``explorer_data``, for the script
    alt: str  # the map in a sentence, for screen readers
    note: str
    kind: ClassVar[str] = "explorer"
    wide: ClassVar[bool] = True


def make_map(store: FeatureStore, field: str, sample: Sample) -> Map | None:
    """Map some samples; None if fewer than two have finite features.

    Positions: principal components, then t-SNE. Neighbours: cosine of the centred features.

    Args:
        field: a field of floating point numbers; grids are compared position by position.
        sample: samples of the map; of a wide field, a random part of them is used.
    """
    spec = store.manifest.fields[field]
    most = max(2, MOST_BYTES // (4 * int(np.prod(spec.shape)) * len(store.manifest.views)))
    places = np.arange(len(sample.rows))
    if len(places) > most:
        places = np.sort(np.random.default_rng(0).choice(places, most, replace=False))
    features = read_vectors(store, field, sample.rows[places]).reshape(len(places), -1)
    finite = np.isfinite(features).all(axis=1)
    if finite.sum() < 2:
        return None
    places, features = places[finite], features[finite]
    chosen = Sample(
        sample.rows[places],
        [sample.ids[place] for place in places],
        sample.labels[places],
        sample.hashes[places],
        sample.whole and len(places) == len(sample.rows),
    )
    # Squares of large values must not overflow.
    largest = float(np.abs(features).max()) or 1.0
    centred = features / np.float32(largest)
    centred -= centred.mean(axis=0)
    points = embed({field: _principal(centred)})[field]
    neighbours, cosines = _nearest(centred)
    return Map(field, chosen, points, neighbours, cosines)


def _principal(centred: Floats) -> Floats:
    """The first principal components, (n, at most PCA_WIDTH), from the smaller of the two Gram matrices."""
    count, width = centred.shape
    values: npt.NDArray[np.float64] = centred.astype(np.float64) if width <= count else np.empty(0)
    if width <= count:
        _, vectors = np.linalg.eigh(values.T @ values)
        axes = vectors[:, ::-1][:, :PCA_WIDTH]
        return _one_sign(values @ axes)
    variances, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    scores = vectors[:, ::-1][:, :PCA_WIDTH] * np.sqrt(variances[::-1][:PCA_WIDTH].clip(min=0))
    return _one_sign(scores)


def _one_sign(scores: npt.NDArray[np.float64]) -> Floats:
    """Flip axes so that the largest score is positive, and every run draws the same map."""
    largest = scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])]
    return (scores * np.where(largest < 0, -1, 1)).astype(np.float32)


def _nearest(centred: Floats) -> tuple[Rows, Floats]:
    count = len(centred)
    lengths = np.linalg.norm(centred, axis=1)
    units = centred / np.where(lengths > 0, lengths, 1)[:, None]
    k = min(NEIGHBOURS, count - 1)
    neighbours = np.empty((count, k), dtype=np.int64)
    cosines = np.empty((count, k), dtype=np.float32)
    for start in range(0, count, BLOCK_ROWS):
        block = units[start : start + BLOCK_ROWS] @ units.T
        here = np.arange(len(block))
        block[here, start + here] = -np.inf
        best = np.argpartition(-block, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(block, best, axis=1)
        order = np.lexsort((best, -found), axis=1)
        neighbours[start : start + len(block)] = np.take_along_axis(best, order, axis=1)
        cosines[start : start + len(block)] = np.take_along_axis(found, order, axis=1)
    return neighbours, cosines.clip(-1, 1)


def explorer_data(manifest: Manifest, found: Map, pictures: Sequence[str]) -> dict[str, Any]:
    """Data for the script of the map; texts are plain, the page escapes them.

    Args:
        pictures: a data URI per sample, "" for none; empty for a map without pictures.
    """
    classes = sorted(set(found.sample.labels.tolist()) - {-1})
    place = {label: number for number, label in enumerate(classes)}
    return {
        "ids": [plain(sample_id, LONGEST_ID) for sample_id in found.sample.ids],
        "rows": found.sample.rows.tolist(),
        "classes": [plain(class_name(manifest, label), LONGEST_ID) for label in classes],
        "labels": [place.get(label, -1) for label in found.sample.labels.tolist()],
        "neighbours": found.neighbours.tolist(),
        "cosines": [
            [round(value, 3) for value in row] for row in found.cosines.astype(float).tolist()
        ],
        "pictures": list(pictures),
    }

"""All data of a store's page, computed in bounded time and memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featstore.card.explore import Map, make_map
from featstore.card.pictures import thumbnails
from featstore.card.statistics import FieldStatistics, measurable, measure_field
from featstore.card.survey import Sample, Survey, draw_rows, survey
from featstore.errors import ConfigError, ViewMismatch
from featstore.reading.store import FeatureStore
from featstore.selection.groups import exact_duplicates
from featstore.selection.near_duplicates import THRESHOLD, NearDuplicates, near_duplicates
from featstore.selection.unit_vectors import default_field

MOST_PRODUCTS = 4 * 10**11
"""Multiplications for a comparison of all images (20,000 rows of 1,000 numbers, about ten seconds). Of a larger store,
only the images of the map are compared."""
MOST_MEASURED = 24  # fields with statistics
MOST_HASHED = 2_000_000  # rows of a store up to which all hashes are compared
MOST_LISTED = 20  # duplicates whose ids are kept

Steps = Callable[[str], None]


@dataclass(frozen=True)
class Duplicates:
    """Identical and similar images of a store."""

    # groups of ids with the same bytes; after ``MOST_LISTED`` groups, empty ones
    exact: list[list[str]]
    near: list[tuple[str, str, float]]  # pairs of ids and their cosine, the most similar first
    found: int
    cosines: Any  # (n,) cosine of every compared image with its nearest neighbour
    whole: bool  # all valid images were compared


@dataclass(frozen=True)
class Findings:
    """All data of the page."""

    survey: Survey
    sample: Sample
    fields: dict[str, FieldStatistics]
    map: Map | None  # of the samples; None if no field can be mapped
    duplicates: Duplicates | None  # None if there is no map
    pictures: list[str]  # data URIs of the map's samples; empty for none

    def as_json(self) -> dict[str, Any]:
        """The numbers, as plain JSON values."""
        own = self.duplicates
        return {
            "rows_valid": self.survey.valid_rows,
            "rows_skipped": self.survey.invalid_rows,
            "bytes": self.survey.bytes,
            "whole": self.survey.whole,
            "sample_rows": len(self.sample.rows),
            "seconds": self.survey.seconds,
            "fields": {
                name: {
                    "bytes": self.survey.field_bytes.get(name),
                    "vectors": item.vectors,
                    "norm_median": float(np.median(item.norms)),
                    "mean_cosine": item.mean_cosine,
                    "effective_dimension": item.entropy,
                    "participation_ratio": item.participation,
                    "components_for_90_percent": item.for_90,
                    "dead_channels": item.dead.tolist(),
                    "not_finite": item.not_finite,
                }
                for name, item in self.fields.items()
            },
            "duplicates": None
            if own is None
            else {"exact_groups": len(own.exact), "near_pairs": own.found, "whole": own.whole},
        }


def look(
    store: FeatureStore,
    *,
    field: str = "",
    points: int = 4000,
    images: Path | None = None,
    step: Steps = lambda text: None,
) -> Findings:
    """Compute all data of the page.

    Args:
        field: field of the map and of the duplicates; "" for cls or the best substitute.
        points: most images of the map and of the statistics.
        images: folder of the images, for thumbnails; None for none.
    """
    step("counts")
    counted = survey(store)
    sample = draw_rows(store, points)
    if not len(sample.rows):
        raise ConfigError(f"{store.path}: no row has features, so there is nothing to show.")
    fields = {}
    named = [name for name, spec in sorted(store.manifest.fields.items()) if measurable(spec)]
    # The requested field is among the first.
    for name in sorted(sorted(named, key=lambda name: name != field)[:MOST_MEASURED]):
        step(f"field {name}")
        found = measure_field(store, name, sample)
        if found is not None:
            fields[name] = found
    if field and field not in fields:
        raise ConfigError(
            f"{store.path}: field {field!r} cannot be mapped; expected one of {', '.join(fields) or 'none'}."
        )
    if not fields:
        return Findings(counted, sample, {}, None, None, [])
    chosen = field or default_field(store)
    if chosen not in fields:  # none of its vectors is finite
        chosen = next(iter(fields))
    step(f"map of {len(sample.rows):,} images")
    laid_out = make_map(store, chosen, sample)
    if laid_out is None:
        return Findings(counted, sample, fields, None, None, [])
    step("duplicates")
    twice = _duplicates(store, laid_out)
    pictures: list[str] = []
    if images is not None:
        step("pictures")
        pictures = thumbnails(images, store.manifest, laid_out.sample)
    return Findings(counted, sample, fields, laid_out, twice, pictures)


def _duplicates(store: FeatureStore, laid_out: Map) -> Duplicates:
    sample = laid_out.sample
    ids = dict(zip(sample.rows.tolist(), sample.ids, strict=True))
    if store.num_rows <= MOST_HASHED:
        groups = [group.tolist() for group in exact_duplicates(store)]
    else:
        by_hash: dict[bytes, list[int]] = {}
        for row, digest in zip(sample.rows.tolist(), sample.hashes, strict=True):
            by_hash.setdefault(digest.tobytes(), []).append(row)
        groups = [rows for rows in by_hash.values() if len(rows) > 1]
    if groups:
        needed = {row for group in groups[:MOST_LISTED] for row in group}
        if not needed <= ids.keys():
            ids |= {row: store.sample_ids[row] for row in needed}
    exact = [[ids[row] for row in group] for group in groups[:MOST_LISTED]]
    exact += [[] for _ in groups[MOST_LISTED:]]
    width = math.prod(store.manifest.fields[laid_out.field].shape)
    if store.num_rows**2 * width <= MOST_PRODUCTS:
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # vectors need not be finite
                pairs: NearDuplicates | None = near_duplicates(store, laid_out.field)
        except ViewMismatch:
            pairs = None  # no canonical view: crops of identical images differ
        if pairs is not None:
            names = store.sample_ids
            near = [
                (names[one], names[other], float(cosine))
                for (one, other), cosine in zip(
                    pairs.rows[:MOST_LISTED].tolist(), pairs.cosine, strict=False
                )
            ]
            return Duplicates(exact, near, pairs.found, _finite(pairs.nearest), True)
    first = np.arange(len(sample.rows))[:, None]
    other, cosine = laid_out.neighbours, laid_out.cosines
    at = np.nonzero((cosine >= THRESHOLD) & ((first < other) | ~_mutual(other)))
    order = np.argsort(-cosine[at], kind="stable")
    ends = [(int(at[0][i]), int(other[at][i]), float(cosine[at][i])) for i in order[:MOST_LISTED]]
    near = [(sample.ids[one], sample.ids[two], value) for one, two, value in ends]
    return Duplicates(exact, near, len(order), _finite(cosine[:, 0]), False)


def _finite(cosines: Any) -> Any:
    return cosines[np.isfinite(cosines)]


def _mutual(neighbours: Any) -> Any:
    """(n, K): the sample is among its neighbour's neighbours, so the pair is found twice."""
    samples = np.arange(len(neighbours))[:, None, None]
    return (neighbours[neighbours] == samples).any(axis=2)

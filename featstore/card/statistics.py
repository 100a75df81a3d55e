"""Statistics of a field from a sample of its vectors."""

# n rows, P vectors of the sample, C channels (last axis)

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featstore.card.survey import Sample
from featstore.files.array_types import Array, Rows
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import FieldRecord
from featstore.reading.store import FeatureStore

Floats = npt.NDArray[np.float64]

MOST_BYTES = 512 * 2**20
"""Most bytes read of one field. Rows are read with all their views, because checksums cover whole rows."""
MOST_VECTORS = 16_384  # most vectors of the statistics
SPARE = 4  # factor of additional rows read of a grid, whose vectors of one row are similar
MOST_SIDE = 2048
"""Longest side of the matrix whose eigenvalues are computed; of wider fields, fewer vectors are used."""
DEAD = 1e-6
"""A channel is constant if its standard deviation is below this share of the median channel's."""


@dataclass(frozen=True)
class FieldStatistics:
    """One field, one view."""

    name: str
    vectors: int
    width: int
    not_finite: int  # vectors left out because of NaN or infinity
    norms: Floats  # (P,) Euclidean norm of each vector
    mean_cosine: float  # mean cosine of two vectors, not centred
    # channel_mean, channel_std: (C,)
    channel_mean: Floats
    channel_std: Floats
    # (k,) singular values of the centred vectors relative to the largest, descending
    spectrum: Floats
    participation: float  # (sum v)^2 / sum v^2, v the variances of the principal components
    entropy: float  # exp of the entropy of v / sum v
    for_90: int  # number of principal components that hold 90% of the variance

    @property
    def dead(self) -> Rows:
        """Indices of constant channels."""
        return np.flatnonzero(self.channel_std <= DEAD * np.median(self.channel_std))


def measurable(spec: FieldRecord) -> bool:
    """Whether a field holds floating point vectors."""
    floating = spec.dtype in ("float16", "bfloat16", "float32")
    return floating and spec.encoding.kind in ("plain", "int8") and bool(spec.shape)


def canonical(manifest: Manifest) -> int:
    """Index of the canonical view, or of the first view if there is none."""
    views = manifest.views.views
    wanted = [at for at, view in enumerate(views) if view.kind == "canonical" and not view.mirrored]
    return wanted[0] if wanted else 0


def read_vectors(store: FeatureStore, field: str, rows: Rows) -> npt.NDArray[np.float32]:
    """One view of some rows of a field, (n, *shape) float32."""
    views = [canonical(store.manifest)] if store.manifest.fields[field].per_view else None
    values: Array = store.gather(field, rows, views=views)
    return values.reshape(len(rows), *store.manifest.fields[field].shape).astype(
        np.float32, copy=False
    )


def measure_field(store: FeatureStore, field: str, sample: Sample) -> FieldStatistics | None:
    """Statistics of a field; None if fewer than two vectors are finite.

    Args:
        field: a ``measurable`` field.
    """
    spec = store.manifest.fields[field]
    width = spec.shape[-1]
    generator = np.random.default_rng(0)
    rows = sample.rows
    read_bytes = 4 * math.prod(spec.shape) * len(store.manifest.views)
    most_rows = max(
        2, min(MOST_BYTES // read_bytes, SPARE * MOST_VECTORS * width // math.prod(spec.shape))
    )
    if len(rows) > most_rows:
        rows = np.sort(generator.choice(rows, most_rows, replace=False))
    vectors = read_vectors(store, field, rows).reshape(-1, width)
    most = MOST_VECTORS if width <= MOST_SIDE else MOST_SIDE
    if len(vectors) > most:
        vectors = vectors[np.sort(generator.choice(len(vectors), most, replace=False))]
    finite = np.isfinite(vectors).all(axis=1)
    values = vectors[finite].astype(np.float64)
    if len(values) < 2:
        return None
    norms = np.linalg.norm(values, axis=1)
    units = values / np.where(norms > 0, norms, 1)[:, None]
    count = len(values)
    mean_cosine = (np.square(units.sum(0)).sum() - (norms > 0).sum()) / (count * (count - 1))
    mean, std = values.mean(0), values.std(0)
    variances = _variances(values - mean)
    shares = variances / (variances.sum() or 1)
    present = shares[shares > 0]
    return FieldStatistics(
        name=field,
        vectors=count,
        width=width,
        not_finite=len(vectors) - count,
        norms=norms,
        mean_cosine=float(mean_cosine),
        channel_mean=mean,
        channel_std=std,
        spectrum=np.sqrt(variances / (variances[0] or 1)),
        participation=float(1 / np.square(present).sum()) if len(present) else 0.0,
        entropy=float(np.exp(-(present * np.log(present)).sum())) if len(present) else 0.0,
        for_90=int(np.searchsorted(np.cumsum(shares), 0.9) + 1) if len(present) else 0,
    )


def _variances(centred: Floats) -> Floats:
    """Variances of the principal components, descending."""
    count, width = centred.shape
    gram = centred.T @ centred if width <= count else centred @ centred.T
    found: Floats = np.linalg.eigvalsh(gram)[::-1].clip(min=0) / count
    # Rounding errors are no variance.
    return np.where(found > found[0] * 1e-12, found, 0)

"""Stored features by sample: the vectors of one teacher or of several side by side, and patch grids.

No pictures and no student here; which row of a store belongs to a sample is decided in ``join_samples``.
"""

# S samples, V views, D width of all teachers' vectors together, g side of a patch grid

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data.feature_norm import ChannelStatistics, Columns, FeatureNorm, measure_channels
from distill.data.samples import NO_ROW, Samples
from distill.data.schedule import Indices
from distill.options import Norm
from featstore import FeatureStore
from featstore.errors import ConfigError, shorten
from featstore.format.manifest_records import FieldRecord
from featstore.format.views import View
from featstore.reading.torch_data import as_tensor

MOST_MEASURED = 4096
"""Grids that give the statistics of ``standardize``; each has many places."""


@dataclass(frozen=True)
class StoredField:
    """One field of one store, and where its rows and views are."""

    store: FeatureStore  # store that holds it
    field: str  # name of the field
    rows: Indices  # (n,) row of every sample
    # (V,) on this store's view axis for every column of the first store's; -1 where it has none
    columns: Indices
    weight: float = 1.0  # weight of this teacher among all

    @property
    def record(self) -> FieldRecord:
        """The field's record in the manifest."""
        return self.store.manifest.fields[self.field]

    def read(self, indices: Indices, columns: Indices) -> Tensor:
        """Read views.

        Args:
            indices: (S,) in ``Samples``.
            columns: (k,) on the first store's view axis, for all samples alike, or (S, k).

        Returns:
            (S, k, *shape) float32; zeros where a sample has no row.
        """
        rows, views = self.rows[indices], self.columns[columns]
        known = rows != NO_ROW
        if not known.all():
            out = torch.zeros(len(rows), views.shape[-1], *self.record.shape)
            if known.any():
                out[torch.from_numpy(known)] = self.read(
                    indices[known], columns if columns.ndim == 1 else columns[known]
                )
            return out
        stored = self.store.gather(self.field, rows, views=views)
        # By torch: it has vector instructions for float16, where numpy takes eight times as long.
        return as_tensor(stored).float()


class _Norms:
    """Normalisations; statistics are measured once for all methods and seeds that train on the same images."""

    def __init__(self) -> None:
        self._statistics: dict[tuple[bytes, tuple[int, ...]], ChannelStatistics] = {}

    def __call__(
        self,
        kind: Norm,
        chunks: Callable[[Indices, Sequence[int]], Iterator[Tensor]],
        indices: Indices,
        columns: Sequence[int],
        blocks: Sequence[Columns] = (),
    ) -> FeatureNorm:
        """Args: chunks: reads (n, D) parts of some images' columns, for ``standardize``."""
        if kind != "standardize":
            return FeatureNorm(kind, blocks=blocks)
        key = hashlib.sha256(indices.tobytes()).digest(), tuple(columns)
        if key not in self._statistics:
            self._statistics[key] = measure_channels(chunks(indices, columns))
        return FeatureNorm(kind, self._statistics[key], blocks=blocks)


class Features:
    """The stored vectors of every sample: one per view, as float32, those of several teachers side by side.

    Args:
        store: Store of the first teacher; its view axis is that of all.
        weight: Weight of the first teacher among all.

    Raises:
        ConfigError: no such field, or one that is not a vector.
    """

    def __init__(
        self,
        store: FeatureStore,
        field: str,
        samples: Samples,
        *,
        weight: float = 1.0,
        others: Sequence[StoredField] = (),
    ) -> None:
        check_vector(store, field, f"--field {field}")
        self.store = store
        self.field = field
        columns = np.arange(len(store.manifest.views))
        self.teachers = [StoredField(store, field, samples.rows, columns, weight), *others]
        self.width = sum(teacher.record.shape[0] for teacher in self.teachers)
        self.reference = reference_column(store)
        """Column of the reference view: the canonical one if it is stored, else the first."""
        self._samples = samples
        self._norms = _Norms()

    def take(self, indices: Indices, columns: Indices | None = None) -> Tensor:
        """Read vectors.

        Args:
            indices: (S,) in ``Samples``.
            columns: (S,) on the view axis; None takes the reference view.

        Returns:
            (S, D) float32.
        """
        chosen = np.full(len(indices), self.reference) if columns is None else columns
        return self._read(indices, chosen[:, None])[:, 0]

    def chunks(
        self, indices: Indices, columns: Sequence[int], *, size: int = 4096
    ) -> Iterator[Tensor]:
        """All the given views of all the given samples, in parts of (n, D)."""
        chosen = np.array(columns, dtype=np.int64)
        for start in range(0, len(indices), size):
            yield self._read(indices[start : start + size], chosen).reshape(-1, self.width)

    def _read(self, indices: Indices, columns: Indices) -> Tensor:
        parts = [teacher.read(indices, columns) for teacher in self.teachers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def norm(self, kind: Norm, indices: Indices, columns: Sequence[int]) -> FeatureNorm:
        """Normalisation of what ``take`` returns, each teacher's block on its own, with its share of a squared error.

        Args:
            indices: Training images, which give the statistics if it needs any.
            columns: Columns of the view axis that training picks from.
        """
        blocks = [Columns(teacher.record.shape[0], teacher.weight) for teacher in self.teachers]
        return self._norms(kind, self.chunks, indices, columns, blocks)


class Grid:
    """The stored patch grid of every sample, as float32.

    Args:
        field: Name of the field; "" for the largest.
        teacher: Teacher among whose grids the largest is taken; "" for any.

    Raises:
        ConfigError: see ``find_grid``.
    """

    def __init__(
        self, store: FeatureStore, field: str, samples: Samples, *, teacher: str = ""
    ) -> None:
        field = find_grid(store, field, teacher)
        columns = np.arange(len(store.manifest.views))
        self._stored = StoredField(store, field, samples.rows, columns)
        self.store = store
        self.field = field
        self.side, _, self.width = self._stored.record.shape
        self.reference = reference_column(store)
        self._norms = _Norms()

    def take(self, indices: Indices, columns: Indices | None = None) -> Tensor:
        """Read grids.

        Args:
            indices: (S,) in ``Samples``.
            columns: (S,) on the view axis; None takes the reference view.

        Returns:
            (S, g, g, D) float32, top row first.
        """
        chosen = np.full(len(indices), self.reference) if columns is None else columns
        return self._stored.read(indices, chosen[:, None])[:, 0]

    def chunks(self, indices: Indices, columns: Sequence[int]) -> Iterator[Tensor]:
        """Every place of all the given views of all the given samples, in parts of (n, D), 64 MiB at a time."""
        chosen = np.array(columns, dtype=np.int64)
        size = max(1, 2**24 // (self.side**2 * self.width * len(chosen)))
        for start in range(0, len(indices), size):
            yield self._stored.read(indices[start : start + size], chosen).reshape(-1, self.width)

    def norm(self, kind: Norm, indices: Indices, columns: Sequence[int]) -> FeatureNorm:
        """Normalisation of a place of what ``take`` returns, the statistics over all places.

        Args:
            indices: Training images. Evenly spread ones, so that it is at most 4,096 grids, give the statistics.
            columns: Columns of the view axis that training picks from.
        """
        every = max(1, -(-len(indices) * len(columns) // MOST_MEASURED))
        return self._norms(kind, self.chunks, indices[::every], columns)


def reference_column(store: FeatureStore) -> int:
    """Column of the canonical view if the store holds it, else the first."""
    views = store.manifest.views.views
    canonical = View(kind="canonical")
    return views.index(canonical) if canonical in views else 0


def _is_read(record: FieldRecord) -> bool:
    """Whether every view of every row has numbers of one shape."""
    plain = record.encoding.kind in ("plain", "int8") and record.dtype != "text"
    return plain and record.per_view


def _is_vector(record: FieldRecord) -> bool:
    return _is_read(record) and len(record.shape) == 1


def _is_grid(record: FieldRecord) -> bool:
    return _is_read(record) and len(record.shape) == 3 and record.shape[0] == record.shape[1]


def check_vector(store: FeatureStore, field: str, setting: str) -> None:
    """Check that a field is one vector per view.

    Args:
        setting: Setting that names the field, for the message.
    """
    fields = store.manifest.fields
    if field not in fields:
        raise ConfigError(
            f"{setting}: {store.address} has no such field; it has: {shorten(sorted(fields))}."
        )
    if not _is_vector(fields[field]):
        record = fields[field]
        vectors = [name for name, other in fields.items() if _is_vector(other)]
        raise ConfigError(
            f"{setting}: has shape {record.shape} {'per view' if record.per_view else 'per row'} "
            f"({record.encoding.kind}) in {store.address}; these methods need one vector per view. "
            f"Fields with one: {shorten(vectors) or 'none'}."
        )


def find_grid(store: FeatureStore, asked: str, teacher: str = "") -> str:
    """Name of the field with patch grids.

    Args:
        asked: Name of the field, or "" for the largest grid of a teacher.
        teacher: Name in the store; "" for any.
    """
    fields = store.manifest.fields
    grids = {name: record for name, record in fields.items() if _is_grid(record)}
    if asked in grids:
        return asked
    own = [name for name, record in grids.items() if teacher in ("", record.teacher)]
    if own and not asked:
        return max(own, key=lambda name: grids[name].shape)
    if grids:
        advice = f"It has {shorten(sorted(grids))}."
    else:
        advice = (
            f"It has {shorten(sorted(fields))}. Extract a store with one (extract.py --store.fields "
            "'[cls,grid7]'), or choose a method that needs none."
        )
    raise ConfigError(
        f"--grid_field {asked or '(the largest)'}: {store.address} has no such patch grid (g x g x D). {advice}"
    )

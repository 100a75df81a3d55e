"""The columns of an export, read from a store and turned into types that other tools know."""

# n rows of a batch, N rows of the store, V views

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from featstore.derive.exporters.base import (
    CONTENT,
    LABEL,
    ROW,
    SAMPLE_ID,
    VALID,
    ExportBatch,
    ExportColumn,
)
from featstore.errors import ConfigError
from featstore.files.array_types import Array, Mask, Rows
from featstore.format.fields import Ragged, numpy_dtype
from featstore.format.manifest_records import FieldRecord, RaggedEncoding, TopKEncoding
from featstore.reading.store import FeatureStore


class FieldReader:
    """The columns of an export, and their values.

    Args:
        float32: Also widen float16.
        canonical: Take the canonical view alone; columns then have no view axis.

    Attributes:
        columns: In the order of the export.

    Raises:
        ConfigError: Two columns would have one name.
        ViewMismatch: The store has no canonical view.
    """

    def __init__(
        self,
        store: FeatureStore,
        names: Sequence[str],
        *,
        float32: bool = False,
        canonical: bool = False,
    ) -> None:
        self.store, self.names, self.float32 = store, names, float32
        views = store.manifest.views
        self.view = views.index(kind="canonical", mirrored=False)[0] if canonical else None
        self.columns = [
            ExportColumn(ROW, "numbers", dtype=np.dtype(np.int64)),
            ExportColumn(SAMPLE_ID, "text"),
            ExportColumn(VALID, "numbers", dtype=np.dtype(np.bool_)),
            ExportColumn(CONTENT, "numbers", (32,), np.dtype(np.uint8)),
        ]
        if store.manifest.source.has_labels:
            self.columns.insert(2, ExportColumn(LABEL, "numbers", dtype=np.dtype(np.int64)))
        for name in names:
            self.columns += self._columns_of(name, store.manifest.fields[name])
        several = [column.name for column in self.columns]
        clashes = sorted({name for name in several if several.count(name) > 1})
        if clashes:
            raise ConfigError(
                f"{store.address}: two columns would be called {', '.join(clashes)}. Leave out one of the fields "
                "(--fields)."
            )

    def _columns_of(self, name: str, record: FieldRecord) -> list[ExportColumn]:
        views = len(self.store.manifest.views) if record.per_view and self.view is None else 0
        axes = (views,) if views else ()
        dtype, encoding = self._dtype(record), record.encoding
        if isinstance(encoding, RaggedEncoding):
            return [ExportColumn(name, "ragged", record.shape, dtype, views, name)]
        shape = (*axes, *record.shape)
        if isinstance(encoding, TopKEncoding):
            index = np.dtype(encoding.index_dtype)
            return [
                ExportColumn(f"{name}_values", "numbers", shape, dtype, field=name),
                ExportColumn(f"{name}_indices", "numbers", shape, index, field=name),
            ]
        return [
            ExportColumn(name, "text" if dtype is None else "numbers", shape, dtype, field=name)
        ]

    def _dtype(self, record: FieldRecord) -> np.dtype[Any] | None:
        wide = record.encoding.kind == "int8" or record.dtype == "bfloat16"
        if wide or (self.float32 and record.dtype == "float16"):
            return np.dtype(np.float32)
        return numpy_dtype(record.dtype)

    def batch(self, shard: int, rows: Rows) -> ExportBatch:
        """Values of all columns, in their types; zeros, no items and empty texts where a row is not valid.

        Args:
            rows: (n,) of the store.
        """
        places = rows - self.store.manifest.shard_range(shard).start
        found: dict[str, Array | Ragged] = {ROW: rows}
        for column in self.columns[1:]:
            if not column.field:
                found[column.name] = self.store.read_shard(shard, column.name)[places]
        valid = found[VALID]
        assert not isinstance(valid, Ragged)
        for name in self.names:
            found |= self._values(name, rows, valid)
        return found

    def _values(self, name: str, rows: Rows, valid: Mask) -> dict[str, Array | Ragged]:
        """Columns of one field."""
        record = self.store.manifest.fields[name]
        dtype, wanted = self._dtype(record), rows[valid]
        if isinstance(record.encoding, RaggedEncoding):
            lists = self.store.gather_ragged(name, wanted)
            values = lists.values.astype(dtype, copy=False)
            return {name: self._lists(record, Ragged(values, lists.offsets), valid)}
        if isinstance(record.encoding, TopKEncoding):
            kept, indices = (
                self._pick(record, part) for part in self.store.gather_topk(name, wanted)
            )
            kept = kept.astype(dtype, copy=False)
            return {
                f"{name}_values": _spread(kept, valid),
                f"{name}_indices": _spread(indices, valid),
            }
        views = [self.view] if record.per_view and self.view is not None else None
        values = self.store.gather(name, wanted, views=views)
        if views is not None:
            values = values[:, 0]
        return {name: _spread(values if dtype is None else values.astype(dtype, copy=False), valid)}

    def _pick(self, record: FieldRecord, values: Array) -> Array:
        """The canonical view alone, if that was asked for."""
        return values[:, self.view] if record.per_view and self.view is not None else values

    def _lists(self, record: FieldRecord, found: Ragged, valid: Mask) -> Ragged:
        """The canonical view's lists alone, if that was asked for, and empty ones for rows that are not valid."""
        views = len(self.store.manifest.views) if record.per_view else 1
        lengths = np.diff(found.offsets).reshape(-1, views)
        values = found.values
        if record.per_view and self.view is not None:
            kept = np.zeros_like(lengths, dtype=np.bool_)
            kept[:, self.view] = True
            values = values[np.repeat(kept.reshape(-1), lengths.reshape(-1))]
            lengths = lengths[:, self.view, None]
        return Ragged(values, np.cumsum([0, *_spread(lengths, valid).reshape(-1)], dtype=np.int64))

    def row_bytes(self, parts: Sequence[tuple[int, Rows]]) -> int:
        """Bytes of a row, about; ids, texts and ragged items are measured.

        Args:
            parts: Some shards, and the rows to measure in each.
        """
        fixed = sum(
            math.prod(column.shape) * column.dtype.itemsize
            for column in self.columns
            if column.kind == "numbers" and column.dtype is not None
        )
        names = [
            column.field for column in self.columns if column.kind != "numbers" and column.field
        ]
        small = FieldReader(
            self.store, names, float32=self.float32, canonical=self.view is not None
        )
        batches = [small.batch(shard, rows) for shard, rows in parts]
        measured = sum(_bytes(batch[name]) for batch in batches for name in (SAMPLE_ID, *names))
        return max(1, fixed + measured // sum(len(rows) for _, rows in parts))


def _spread(values: Array, valid: Mask) -> Array:
    """Rows of valid values, and zeros or empty texts between them."""
    if valid.all():
        return values
    empty = "" if values.dtype == object else 0
    out = np.full((len(valid), *values.shape[1:]), empty, values.dtype)
    out[valid] = values
    return out


def _bytes(values: Array | Ragged) -> int:
    if isinstance(values, Ragged):
        return values.values.nbytes + values.offsets.nbytes
    return sum(len(text.encode()) for text in values.reshape(-1).tolist())

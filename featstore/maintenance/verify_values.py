"""Rules for the values of a shard beyond their checksums: finite, in range, zero where a row is invalid.

A checksum says that bytes are those that were written, not that the writer was right; stores come from other teams too.
"""

# R rows of a shard, ... the axes of a column's entry

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featstore.files.array_types import Array, Mask, Rows
from featstore.format.fields import Column
from featstore.format.int8 import LARGEST
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import FieldRecord, RaggedEncoding, TopKEncoding

STEP_BYTES = 8 * 2**20
"""Values are checked in pieces of about this size, so that temporary arrays stay small."""

EXAMPLES = 5  # rows of a problem whose ids are named

_EXPONENT = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
}
"""Bits that are all set in infinities and NaN, and in no other number. Integers compare faster than halves."""


@dataclass(frozen=True)
class Problem:
    """Something that a column must not hold."""

    rows: range  # rows of the shard, counted from its first
    text: str
    examples: tuple[int, ...] = ()


class ShardRules:
    """Checks the columns of one shard: first ``valid``, and ``values`` before ``ranges``, as stores list them."""

    def __init__(self, manifest: Manifest, shard: int) -> None:
        self._manifest = manifest
        self._rows = manifest.shard_range(shard)
        self._shard = shard
        self._valid: Mask | None = None
        self._items: dict[str, int] = {}
        self._not_finite: dict[str, Rows] = {}

    def check(self, column: Column, values: Array) -> Iterator[Problem]:
        """Yield what is wrong with one column.

        Args:
            values: all its entries in the shard; (R, ...) but for the items of ragged rows.
        """
        if column.name == "valid":
            self._valid = values.astype(np.bool_)
            yield from _rows(values.view(np.uint8) > 1, "neither true nor false")
        elif column.name == "label":
            most = len(self._manifest.source.class_names) or np.iinfo(np.int64).max
            yield from _rows(
                (values < -1) | (values >= most), f"labels outside of -1 to {most - 1}"
            )
        elif column.name == "sample_id":
            yield from _rows(np.array([not name for name in values]), "without a sample id")
        elif column.of_field and column.dtype is not None:
            _, name, *part = column.name.split("/")
            yield from self._field(column, self._manifest.fields[name], "".join(part), values)

    def _field(
        self, column: Column, field: FieldRecord, part: str, values: Array
    ) -> Iterator[Problem]:
        field_name = column.name.removesuffix(f"/{part}")
        if column.capacity > 1:
            self._items[field_name] = len(values)
        elif part != "ranges" and self._valid is not None:
            bad = np.zeros(len(values), dtype=np.bool_)
            for row in np.flatnonzero(~self._valid):
                bad[row] = np.asarray(values[row]).astype(np.bool_).any()
            yield from _rows(bad, "not zero, though the row is invalid")
        yield from self._finite(column, values)
        if part == "scale":
            yield from _rows(_by_row(values < 0), "negative scales")
            most = np.finfo(np.float32).max / LARGEST
            yield from _rows(_by_row(values > most), "scales too large for any number")
        if isinstance(field.encoding, TopKEncoding):
            yield from _top_k(values, part, field.encoding.num_classes)
        if isinstance(field.encoding, RaggedEncoding) and part == "ranges":
            yield from self._ranges(field.encoding, values, self._items.get(field_name))
            if field_name in self._not_finite:
                yield from self._rows_of_items(field.encoding, values, self._not_finite[field_name])

    def _finite(self, column: Column, values: Array) -> Iterator[Problem]:
        assert column.dtype is not None
        if column.dtype.name not in _EXPONENT or not len(values):
            return
        kind, mask = _EXPONENT[column.dtype.name]
        step = max(1, STEP_BYTES // max(1, column.entry_bytes))
        bad = np.zeros(len(values), dtype=np.bool_)
        for start in range(0, len(values), step):
            bits = values[start : start + step].view(kind)
            odd = (bits & kind(mask)) == mask
            if odd.any():
                bad[start : start + step] = _by_row(odd)
        if not bad.any():
            return
        if column.capacity > 1:  # which rows the items belong to is in another column
            yield Problem(range(len(self._rows)), f"{bad.sum()} items that are not finite")
            self._not_finite[column.name.removesuffix("/values")] = np.flatnonzero(bad)
        else:
            yield from _rows(bad, "not finite (NaN or infinity)")

    def _ranges(
        self, encoding: RaggedEncoding, values: Array, items: int | None
    ) -> Iterator[Problem]:
        ranges = values.reshape(len(values), -1, 2)
        first, last = ranges[..., 0], ranges[..., 1]
        yield from _rows(_by_row(last < first), "ranges that end before they begin")
        before = np.concatenate([[0], last.reshape(-1)[:-1]]).reshape(first.shape)
        before[0, 0] = self._shard * self._manifest.work.shard_rows * encoding.most_items
        yield from _rows(_by_row(first < before), "ranges that overlap the ones before them")
        if items is not None:
            end = int(before[0, 0]) + items
            yield from _rows(_by_row(last > end), f"ranges beyond the shard's {items} items")
        counts = (last - first).sum(axis=1)
        yield from _rows(counts > encoding.most_items, f"more than {encoding.most_items} items")
        if self._valid is not None:
            yield from _rows((counts != 0) & ~self._valid, "items, though the row is invalid")

    def _rows_of_items(
        self, encoding: RaggedEncoding, values: Array, items: Rows
    ) -> Iterator[Problem]:
        """Rows that have some of the items that are not finite."""
        origin = self._shard * self._manifest.work.shard_rows * encoding.most_items
        ends = np.searchsorted(items + origin, values.reshape(len(values), -1, 2))
        yield from _rows(_by_row(ends[..., 1] > ends[..., 0]), "items that are not finite")


def _top_k(values: Array, part: str, num_classes: int) -> Iterator[Problem]:
    if part == "indices":
        outside: Mask = _by_row(values.astype(np.int64) >= num_classes) | _by_row(values < 0)
        yield from _rows(outside, f"indices beyond the {num_classes} classes")
    elif values.dtype.kind != "b" and values.shape[-1] > 1:
        wide = values.astype(np.float64)
        yield from _rows(_by_row(wide[..., 1:] > wide[..., :-1]), "values that are not sorted")


def _by_row(mask: Mask) -> Mask:
    return np.asarray(mask.any(axis=tuple(range(1, mask.ndim))), dtype=np.bool_)


def _rows(bad: Mask, text: str) -> Iterator[Problem]:
    rows = np.flatnonzero(bad)
    if rows.size:
        span = range(int(rows[0]), int(rows[-1]) + 1)
        yield Problem(span, f"{rows.size} rows: {text}", tuple(rows[:EXAMPLES].tolist()))

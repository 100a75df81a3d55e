"""Columns of a store, and the conversion between values of fields and columns.

A *field* is what a user reads ("cls", "logits"); a *column* is an array on disk. Most fields have one column;
quantised, top-k and ragged fields have two. No files, no torch.
"""

# R rows of a shard, V views, C channels (last axis), K kept classes

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

import featstore.files.machine as memory
from featstore.errors import ConfigError
from featstore.files.array_types import Array, Rows
from featstore.format.int8 import Channels, quantise
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import (
    Codec,
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    TopKEncoding,
)


@dataclass(frozen=True)
class Column:
    """One array of a store."""

    name: str  # path inside the store, e.g. ``fields/cls``
    shape: tuple[int, ...]  # shape of one entry; () for a scalar
    dtype: np.dtype[Any] | None  # numpy dtype, or None for text
    dims: tuple[str, ...]
    codec: Codec = "raw"
    capacity: int = 1  # entries that each row reserves; 1 but for the items of ragged rows

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry; 0 for text."""
        return 0 if self.dtype is None else math.prod(self.shape) * self.dtype.itemsize

    @property
    def of_field(self) -> bool:
        """Whether it belongs to a field; the others describe the samples."""
        return self.name.startswith("fields/")


class TopK(NamedTuple):
    """Rows of a top-k field: the numbers that were kept, and which classes they are of."""

    values: Array  # (B, V, ..., K) in the field's dtype
    indices: Array  # (B, V, ..., K) uint16 or int32


class Ragged(NamedTuple):
    """Rows of a ragged field: items one after another, row by row, view by view."""

    values: Array  # (T, *shape): all items
    offsets: Rows
    """(B * V + 1,): items of view v of row b are ``values[offsets[b * V + v] : offsets[b * V + v + 1]]``."""


class Codes(NamedTuple):
    """Rows of an int8 field as they are stored; ``featstore.format.int8.dequantise`` makes numbers of them."""

    codes: npt.NDArray[np.int8]  # (B, V, *shape)
    scale: npt.NDArray[np.float32] | None
    """(B, V, *shape without its last axis), or None: one scale per row."""
    channels: Channels | None  # scale and offset of each channel, or None


def numpy_dtype(name: str) -> np.dtype[Any] | None:
    """The numpy dtype that a manifest names; None for text. bfloat16 is ``ml_dtypes.bfloat16``."""
    if name == "text":
        return None
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def columns_of(manifest: Manifest) -> dict[str, Column]:
    """List the columns that a store with this manifest has, by name."""
    columns = [
        Column("sample_id", (), None, ("sample",)),
        Column("content_sha256", (32,), np.dtype(np.uint8), ("sample", "byte")),
        Column("valid", (), np.dtype(np.bool_), ("sample",)),
    ]
    if manifest.source.has_labels:
        columns.append(Column("label", (), np.dtype(np.int64), ("sample",)))
    for name, field in sorted(manifest.fields.items()):
        columns += field_columns(name, field, len(manifest.views))
    return {column.name: column for column in columns}


def field_columns(name: str, field: FieldRecord, num_views: int) -> list[Column]:
    """The columns of one field."""
    path = f"fields/{name}"
    views = (num_views,) if field.per_view else ()
    axes = ("sample", "view") if field.per_view else ("sample",)
    # xarray allows an axis name one size in a group, and cls and logits are rarely of one width.
    dims = tuple(f"{name}_{dim}" for dim in field.dims)
    dtype, encoding, codec = numpy_dtype(field.dtype), field.encoding, field.codec
    if isinstance(encoding, RaggedEncoding):
        return [
            Column(
                f"{path}/values",
                field.shape,
                dtype,
                (f"{name}_item", *dims),
                codec,
                encoding.most_items,
            ),
            Column(f"{path}/ranges", (*views, 2), np.dtype(np.int64), (*axes, "range")),
        ]
    shape = (*views, *field.shape)
    if isinstance(encoding, TopKEncoding):
        index = np.dtype(encoding.index_dtype)
        return [
            Column(f"{path}/values", shape, dtype, (*axes, *dims), codec),
            Column(f"{path}/indices", shape, index, (*axes, *dims), codec),
        ]
    if isinstance(encoding, Int8Encoding):
        codes = Column(f"{path}/codes", shape, np.dtype(np.int8), (*axes, *dims), codec)
        if encoding.scheme == "channel":
            return [codes]
        scale = Column(f"{path}/scale", shape[:-1], np.dtype(np.float32), (*axes, *dims[:-1]))
        return [codes, scale]
    return [Column(path, shape, dtype, (*axes, *dims), codec)]


def empty_columns(manifest: Manifest, shard: int) -> dict[str, Array]:
    """Allocate the columns of a shard: zeros and empty texts; ragged fields have no items yet."""
    rows = len(manifest.shard_range(shard))
    columns: dict[str, Array] = {}
    for column in columns_of(manifest).values():
        if column.dtype is None:
            columns[column.name] = memory.empty((rows, *column.shape), object, where="a shard")
            columns[column.name][...] = ""
        else:
            entries = 0 if column.capacity > 1 else rows
            shape = (entries, *column.shape)
            columns[column.name] = memory.zeros(shape, column.dtype, where="a shard")
    return columns


def put(
    manifest: Manifest,
    columns: dict[str, Array],
    name: str,
    at: slice | Rows,
    values: Array,
    *,
    channels: Channels | None = None,
) -> None:
    """Write some rows of a field into the columns of its shard.

    Args:
        columns: Of the shard, from ``empty_columns``.
        name: Of the field; not a ragged one.
        values: (rows, V, *shape); for a top-k field the whole axis, (rows, V, ..., num_classes).
        channels: Scales and offsets of a quantised field, from the artefact that its encoding names.
    """
    field = manifest.fields[name]
    encoding = field.encoding
    path = f"fields/{name}"
    views = (len(manifest.views),) if field.per_view else ()
    shape = (*views, *field.shape)
    if isinstance(encoding, TopKEncoding):
        shape = (*shape[:-1], encoding.num_classes)
    if values.shape[1:] != shape:
        raise ConfigError(
            f'field "{name}": rows of shape {values.shape[1:]}, the store expects {shape}.'
        )
    if isinstance(encoding, TopKEncoding):
        kept, indices = top_k(values, field.shape[-1])
        columns[f"{path}/values"][at] = kept
        columns[f"{path}/indices"][at] = indices
    elif isinstance(encoding, Int8Encoding):
        codes, scale = quantise(values, encoding.scheme, channels)
        columns[f"{path}/codes"][at] = codes
        if scale is not None:
            columns[f"{path}/scale"][at] = scale
    else:
        columns[path][at] = values


def put_ragged(
    manifest: Manifest,
    columns: dict[str, Array],
    name: str,
    shard: int,
    rows: Sequence[Sequence[Array] | Array],
) -> None:
    """Write all rows of a ragged field into the columns of its shard.

    Args:
        columns: Of the shard, from ``empty_columns``.
        rows: Per row, one array (items, *shape) for each view; a single array where the field is not per view.
    """
    field = manifest.fields[name]
    encoding = field.encoding
    assert isinstance(encoding, RaggedEncoding), name
    dtype = numpy_dtype(field.dtype)
    num_views = len(manifest.views) if field.per_view else 1
    ranges = np.zeros((len(rows), num_views, 2), dtype=np.int64)
    parts: list[Array] = []
    position = shard * manifest.work.shard_rows * encoding.most_items
    for r, row in enumerate(rows):
        views = list(row) if field.per_view else [np.asarray(row)]
        items = sum(len(view) for view in views)
        wrong = [view.shape for view in views if view.shape[1:] != field.shape]
        if len(views) != num_views or wrong or items > encoding.most_items:
            raise ConfigError(
                f'field "{name}", row {manifest.shard_range(shard)[r]}: {len(views)} views of shapes '
                f"{[view.shape for view in views]}; expected {num_views} views of items {field.shape}, at most "
                f"{encoding.most_items} items in all."
            )
        for v, view in enumerate(views):
            ranges[r, v] = position, position + len(view)
            position += len(view)
            parts.append(view)
    values = np.concatenate(parts) if parts else np.empty((0, *field.shape))
    columns[f"fields/{name}/values"] = values.astype(dtype, copy=False)
    column = columns[f"fields/{name}/ranges"]
    column[:] = ranges.reshape(column.shape)


def top_k(values: Array, k: int) -> tuple[Array, Array]:
    """The k largest numbers of the last axis, largest first, and their positions; of equal ones the first wins."""
    order = np.argsort(-values.astype(np.float32, copy=False), axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(values, order, axis=-1), order


def check_columns(columns: Mapping[str, Column], given: Mapping[str, Array]) -> None:
    """Check that exactly the columns of the store are given."""
    if given.keys() != columns.keys():
        raise ValueError(f"columns {sorted(given)} given, the store has {sorted(columns)}")

"""Measure size and error of a field as each type and with each codec, on rows of a store."""

# n rows, V views, C channels (last axis)

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from featstore.containers.zarr_chunks import encoded_bytes
from featstore.errors import ConfigError
from featstore.files.array_types import Array, Rows
from featstore.format.fields import field_columns
from featstore.format.int8 import Scheme, calibrate, quantise
from featstore.format.manifest_records import (
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    TopKEncoding,
)
from featstore.planning.costs import CODECS, Choice
from featstore.reading.store import FeatureStore

FLOATS = ("float32", "float16", "bfloat16")
HOLDS = {
    "float32": (*FLOATS, "int8"),
    "float16": ("float16", "bfloat16", "int8"),
    "bfloat16": ("bfloat16", "int8"),
    "int8": ("int8",),
}
"""What can be measured on rows that are stored as a type. The bits that a wider one would add are gone, so a codec
would look better on it than it is."""

SCHEME: Scheme = "channel_row"
"""Of int8: what keeps the nearest neighbours best (``featstore.format.int8``)."""

MOST_SAMPLE_BYTES = 64 * 2**20
MOST_SHARDS = 16
"""The sample is drawn from so many shards: the first row of each costs more than the next thousand."""


def sample_rows(store: FeatureStore, count: int) -> Rows:
    """Return valid rows of a few random shards, ascending. Raises ConfigError: there is no valid row in them."""
    generator = np.random.default_rng(0)
    shards = np.asarray(store.shards)
    if len(shards) > MOST_SHARDS:
        shards = generator.choice(shards, MOST_SHARDS, replace=False)
    usable: list[int] = []
    for entry in store.entries(np.sort(shards).tolist()):
        bad = {item.row for item in entry.invalid}
        usable += [row for row in range(*entry.rows) if row not in bad]
    if not usable:
        raise ConfigError(f"{store.address}: no valid row to measure on.")
    chosen = generator.choice(usable, min(count, len(usable)), replace=False)
    return np.sort(chosen).astype(np.int64)


def measured_choices(store: FeatureStore, name: str, rows: Rows) -> tuple[int, list[Choice]]:
    """Measure a field as each type and codec.

    Args:
        name: of the field. Of top-k, ragged, text and whole numbers, types are not a choice.
        rows: to measure on; of a wide field, some of them.

    Returns:
        How many rows were measured, and the choices.
    """
    spec = store.manifest.fields[name]
    reduced = isinstance(spec.encoding, TopKEncoding | RaggedEncoding)
    if reduced or spec.dtype not in FLOATS or not spec.shape:
        return _measure_columns(store, name, spec, rows)
    most = max(1, MOST_SAMPLE_BYTES // max(1, spec.row_bytes(len(store.manifest.views))))
    rows = rows[:: -(-len(rows) // most)]
    values = store.gather(name, rows).astype(np.float32)
    return len(rows), list(_measure_types(values, spec))


def _measure_types(values: Array, spec: FieldRecord) -> Iterator[Choice]:
    stored = "int8" if isinstance(spec.encoding, Int8Encoding) else spec.dtype
    for dtype in (*FLOATS, "int8"):
        scales = 0
        if dtype == "int8":
            found = calibrate(values, SCHEME)
            data, scale = quantise(values, SCHEME, found.channels)
            error = found.relative_l2
            scales = 0 if scale is None else scale.nbytes
        else:
            data = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
            error = _relative_l2(values, data.astype(np.float32))
        for codec in CODECS if dtype in HOLDS[stored] else CODECS[:1]:
            yield Choice(
                dtype=dtype,
                codec=codec,
                row_bytes=(encoded_bytes(data, codec) + scales) / len(values),
                relative_l2=error,
                stored=(dtype, codec) == (stored, spec.codec),
            )


def _relative_l2(values: Array, back: Array) -> float:
    """Mean of |x - x'| / |x| over last axes."""
    width = values.shape[-1]
    exact: Array = values.reshape(-1, width).astype(np.float64)
    length = np.linalg.norm(exact, axis=1)
    lost = np.linalg.norm(exact - back.reshape(-1, width), axis=1)
    usable = length > 0
    return float((lost[usable] / length[usable]).mean()) if usable.any() else 0.0


def _measure_columns(
    store: FeatureStore, name: str, spec: FieldRecord, rows: Rows
) -> tuple[int, list[Choice]]:
    """The stored columns with each codec, over whole shards: items and texts are of any length."""
    manifest = store.manifest
    shards = np.unique(manifest.shards_of(rows))[:2].tolist()
    count = sum(len(manifest.shard_range(shard)) for shard in shards)
    total = dict.fromkeys(CODECS, 0)
    for column in field_columns(name, spec, len(manifest.views)):
        for shard in shards:
            values = store.read_shard(shard, column.name)
            if column.dtype is None:
                size = sum(4 + len(str(text).encode()) for text in values.reshape(-1))
                sizes = dict.fromkeys(CODECS, size)
            elif column.name.endswith("/ranges"):
                sizes = dict.fromkeys(CODECS, values.nbytes)
            else:
                sizes = {codec: encoded_bytes(values, codec) for codec in CODECS}
            for codec in CODECS:
                total[codec] += sizes[codec]
    codecs = CODECS if spec.dtype != "text" else CODECS[:1]
    return count, [
        Choice(
            dtype=spec.dtype,
            codec=codec,
            row_bytes=total[codec] / count,
            stored=codec == spec.codec,
        )
        for codec in codecs
    ]

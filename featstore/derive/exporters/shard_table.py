"""Rows of a store as Arrow tables, one per shard: for Ray Data, Spark, DuckDB, polars and others that read Arrow."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featstore.derive.exporters.base import check_packages
from featstore.derive.exporters.fieldreader import FieldReader
from featstore.errors import ConfigError, shorten
from featstore.reading.store import FeatureStore

if TYPE_CHECKING:
    import pyarrow as pa


def shard_table(
    store: FeatureStore | str | Path,
    shard: int,
    fields: Sequence[str] | None = None,
    *,
    float32: bool = False,
) -> "pa.Table":
    """Return the valid rows of one shard, with the columns that ``featstore export --format parquet`` writes.

    Columns: ``row``, ``sample_id``, ``label`` where the store has labels, ``valid``, ``content_sha256`` (hexadecimal),
    and each field as nested lists: of fixed size for numbers, of any size for ragged fields.

    Args:
        store: An open store, or its path or URL.
        shard: Number of the shard, one of ``store.shards``.
        fields: Fields to read; all if not given.
        float32: Widen float16, for engines that do not have it (Spark). int8 and bfloat16 fields are float32 always.

    Raises:
        ConfigError: The store has no such field or shard, or pyarrow is not installed.
        ShardCorrupt: Bytes are not those that were written.

    Examples:
        >>> featstore.shard_table("stores/photos", 0, ["cls"]).column_names
        ['row', 'sample_id', 'label', 'valid', 'content_sha256', 'cls']
    """
    check_packages("shard_table", ["pyarrow"])
    import pyarrow as pa

    from featstore.derive.exporters.arrow import arrow_array, arrow_type

    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    names = list(opened) if fields is None else fields
    for name in names:
        if name not in opened:
            raise ConfigError(
                f"{opened.address}: no field {name!r}; it has: {shorten(list(opened))}."
            )
    reader = FieldReader(opened, names, float32=float32)
    if shard not in opened.shards:
        raise ConfigError(
            f"{opened.address}: no shard {shard}; it has {len(opened.shards)} shards, the last is {opened.shards[-1]}."
        )
    span = opened.manifest.shard_range(shard)
    rows = span.start + np.flatnonzero(opened.read_shard(shard, "valid"))
    batch = reader.batch(shard, rows)
    schema = pa.schema([(column.name, arrow_type(column)) for column in reader.columns])
    arrays = [
        arrow_array(batch[column.name], column, kind)
        for column, kind in zip(reader.columns, schema.types, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)

"""The small interface between a store and the container its bytes lie in.

A container holds *columns*: arrays that all have one entry per row. It writes and reads them one shard at a time and
knows nothing of images, teachers or ledgers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.ledger import ObjectRecord
from featstore.manifest import Manifest

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Column:
    """One array of a store.

    Attributes:
        name: path inside the store, e.g. ``fields/cls``.
        shape: shape of one row; () for a scalar.
        dtype: numpy dtype, or None for text.
        dims: names of the axes, the first is ``sample``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    dims: tuple[str, ...]


def columns_of(manifest: Manifest) -> dict[str, Column]:
    """List the columns that a store with this manifest has, by name."""
    columns = [
        Column("sample_id", (), None, ("sample",)),
        Column("content_sha256", (32,), np.dtype(np.uint8), ("sample", "byte")),
        Column("valid", (), np.dtype(np.bool_), ("sample",)),
    ]
    if manifest.source.has_labels:
        columns.append(Column("label", (), np.dtype(np.int64), ("sample",)))
    columns += [
        Column(
            f"fields/{name}",
            (len(manifest.views), *field.shape),
            np.dtype(field.dtype),
            # xarray allows an axis name one size in a group, and cls and logits are rarely of one width.
            ("sample", "view", *(f"{name}_{dim}" for dim in field.dims)),
        )
        for name, field in sorted(manifest.fields.items())
    ]
    return {column.name: column for column in columns}


class Backend(ABC):
    """One container format at one place, bound to the manifest that describes it."""

    def __init__(self, store: Path, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.columns = columns_of(manifest)

    @abstractmethod
    def create(self) -> None:
        """Write the metadata of all columns into the (empty) folder."""

    @abstractmethod
    def write_shard(self, shard: int, columns: Mapping[str, Array]) -> dict[str, ObjectRecord]:
        """Write one shard of every column, each object atomically.

        Args:
            shard: number of the shard.
            columns: by column name, (rows of the shard, *shape); text as an object array.

        Returns:
            Size and checksum of each object written, by its path inside the store.

        Raises:
            StoreWriteError: the disk refused.
        """

    def map_column(self, column: str) -> "MappedColumn | None":
        """One array over all shards of a column, or None where this container or this layout cannot give one."""
        return None

    @abstractmethod
    def read_shard(self, shard: int, column: str, objects: Mapping[str, ObjectRecord]) -> Array:
        """Read one column of one shard, memory-mapped where the container allows.

        Args:
            shard: number of the shard.
            column: name of the column.
            objects: what the ledger says of the shard's objects; checked before anything is returned.

        Returns:
            (rows of the shard, *shape), read-only.

        Raises:
            ShardCorrupt: an object is missing, has another size, or another checksum.
        """


class MappedColumn(ABC):
    """A column as one array. A shard's rows may be touched only after ``attach`` has checked and mapped it.

    Attributes:
        rows: (shards x rows per shard, *shape), read-only; valid as long as this object lives.
    """

    rows: Array

    @abstractmethod
    def attach(self, shard: int, objects: Mapping[str, ObjectRecord]) -> None:
        """Check one shard and map it into its place.

        Raises:
            ShardCorrupt: see ``Backend.read_shard``.
            OSError: the system's limit on mappings is reached.
        """

"""The small interface between a store and the container of its bytes.

A container holds *columns*: arrays whose entries belong to rows. It turns one shard of every column into objects
(files), and reads rows back out of them. It does not handle images, teachers or ledgers, and it writes no shard to
disk: the writer does, in the same way for all containers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featstore.files.array_types import Array, Bytes, Rows
from featstore.format.fields import Column, columns_of
from featstore.format.ledger import ObjectRecord
from featstore.format.manifest import Manifest


@dataclass(frozen=True)
class EncodedObject:
    """One file of a shard, not yet written."""

    name: str
    parts: Sequence[bytes | Bytes]  # the bytes, one part after another; arrays are contiguous
    block_bytes: int  # how many bytes share a checksum in the ledger


class Backend(ABC):
    """One container format in one folder, with the manifest that describes it."""

    def __init__(self, store: Path, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.columns = columns_of(manifest)

    @abstractmethod
    def create(self) -> None:
        """Write what a container needs before its first shard into the (empty) folder."""

    @abstractmethod
    def encode(self, shard: int, columns: Mapping[str, Array]) -> Iterator[EncodedObject]:
        """Turn one shard of every column into objects, one at a time.

        Args:
            columns: by column name, (entries of the shard, *shape); text as an object array.
        """

    @abstractmethod
    def object_names(self, shard: int) -> list[str]:
        """Paths inside the store of the objects that a shard has."""

    @abstractmethod
    def object_of(self, shard: int, column: str) -> str:
        """Path inside the store of the object that holds a column of a shard."""

    @abstractmethod
    def read_shard(self, shard: int, column: str, objects: Mapping[str, ObjectRecord]) -> Array:
        """Read one column of one shard, memory-mapped where the container allows.

        Args:
            objects: ledger records of the shard's objects; checked before anything is returned.

        Returns:
            (entries of the shard, *shape), read-only.

        Raises:
            ShardCorrupt: an object is missing, has another size, or another checksum.
        """

    @abstractmethod
    def open_column(self, column: str) -> "ColumnReader":
        """A reader of any rows of one column of numbers with one entry per row."""

    @abstractmethod
    def holds(self, shard: int, name: str, start: int, stop: int) -> tuple[str, range]:
        """Name the columns and rows that some bytes of an object hold, for messages.

        Returns:
            Name of the column (or of several), and the rows of the store.
        """

    def forget(self, shard: int) -> None:  # noqa: B027  # not all containers remember something
        """Drop what was read of a shard: its objects are gone from the disk, and may come again."""


class ColumnReader(ABC):
    """Rows of one column, wherever they lie. Rows are ``prepare``d, which checks their bytes, before they are taken."""

    column: Column

    @abstractmethod
    def unprepared(self, rows: Rows) -> Rows:
        """Those of some rows that were not prepared yet; called with every batch, so it must be fast.

        Args:
            rows: (n,) inside the store.
        """

    @abstractmethod
    def prepare(self, shard: int, objects: Mapping[str, ObjectRecord], rows: Rows) -> None:
        """Compare the blocks that hold some rows to the ledger, and make them readable.

        Args:
            objects: ledger records of the shard's objects.
            rows: (n,) rows of the store, all in this shard.

        Raises:
            ShardCorrupt: an object is missing, has another size, or another checksum in one of those blocks.
        """

    @abstractmethod
    def forget(self, shard: int) -> None:
        """Let the rows of a shard count as not prepared: its objects are gone from the disk, and may come again.

        What is mapped stays so: another thread may be reading it.
        """

    @abstractmethod
    def take(self, rows: Rows, out: Array) -> None:
        """Copy rows that were prepared.

        Args:
            rows: (n,).
            out: (n, *shape) of the column's dtype, contiguous.
        """

    def take_views(self, rows: Rows, views: Rows, out: Array) -> None:
        """Copy some views of rows that were prepared; here by way of all of them.

        Args:
            rows: (n,).
            views: (n, k) on the first axis of an entry.
            out: (n, k, *shape without its first axis) of the column's dtype, contiguous.
        """
        whole = np.empty((len(rows), *self.column.shape), dtype=out.dtype)
        self.take(rows, whole)
        out[...] = whole[np.arange(len(rows))[:, None], views]

"""Objects of the Zarr container: their names, and which rows their bytes hold."""

from collections.abc import Mapping

from featstore.containers.base import Backend
from featstore.containers.block_checksums import Describe, ObjectFile
from featstore.containers.zarr_chunks import chunk_rows
from featstore.errors import ShardCorrupt
from featstore.format.fields import Column
from featstore.format.ledger import ObjectRecord, entry_path


class ZarrLayout(Backend):
    """One object per column and shard, ``COLUMN/c/SHARD/0/...``."""

    def shard_entries(self, column: Column) -> int:
        """Entries that a shard of a column reserves."""
        return self.manifest.work.shard_rows * column.capacity

    def chunk_entries(self, column: Column) -> int:
        return chunk_rows(self.shard_entries(column), column.entry_bytes)

    def object_name(self, shard: int, column: Column) -> str:
        """Path of a shard object inside the store."""
        return "/".join([column.name, "c", str(shard), *("0" for _ in column.shape)])

    def object_names(self, shard: int) -> list[str]:
        return [self.object_name(shard, column) for column in self.columns.values()]

    def object_of(self, shard: int, column: str) -> str:
        return self.object_name(shard, self.columns[column])

    def object_file(
        self, shard: int, column: Column, objects: Mapping[str, ObjectRecord]
    ) -> ObjectFile:
        """The file of a shard's object; see ``ObjectFile``.

        Raises:
            ShardCorrupt: The ledger does not list it, it is missing, or its size cannot hold the rows.
        """
        name = self.object_name(shard, column)
        if name not in objects:
            raise ShardCorrupt(f"{entry_path(self.store, shard)}: the entry lacks {name}.")
        file = ObjectFile(self.store, name, objects[name], self.describe(shard, column))
        size = file.record.bytes
        least = len(self.manifest.shard_range(shard)) * column.entry_bytes
        if column.capacity == 1 and column.codec == "raw" and size < max(1, least):
            raise file.corrupt(f"{size:,} bytes, expected {least:,} bytes or more")
        return file

    def holds(self, shard: int, name: str, start: int, stop: int) -> tuple[str, range]:
        rows = self.manifest.shard_range(shard)
        column = next(
            (spec for spec in self.columns.values() if self.object_name(shard, spec) == name), None
        )
        if column is None:
            return name, rows
        plain = column.of_field and column.codec == "raw" and column.entry_bytes > 0
        if not plain or column.capacity > 1 or start >= len(rows) * column.entry_bytes:
            return column.name, rows  # compressed, text, or the index: all of them
        last = min(len(rows), -(-stop // column.entry_bytes))
        return column.name, range(rows.start + start // column.entry_bytes, rows.start + last)

    def describe(self, shard: int, column: Column) -> Describe:
        """Words for the bytes of a shard's object."""
        name = self.object_name(shard, column)

        def words(start: int, stop: int) -> str:
            _, rows = self.holds(shard, name, start, stop)
            return f'shard {shard} (rows {rows.start}-{rows.stop - 1}), column "{column.name}"'

        return words

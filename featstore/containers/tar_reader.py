"""One tar of a WebDataset store, mapped into memory: its index, the place of each member, and whether both are true.

Bytes are compared to the ledger before they are parsed. The writer may be malicious all the same, so every size and
position is also compared to the manifest and to the size of the file.
"""

# R rows of the shard

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from featstore.containers.address_range import EndToEnd
from featstore.containers.block_checksums import Describe, ObjectFile, corrupt_error
from featstore.containers.tar_layout import INDEX, STARTS, TarLayout, stored_dtype
from featstore.errors import StoreError
from featstore.files.array_types import Array, Mask, Rows
from featstore.files.tar_headers import (
    BLOCK_BYTES,
    BadTar,
    Member,
    members,
    name_fields,
    read_member,
    read_npy_header,
)
from featstore.format.fields import Column

_NPY_BYTES = 4096  # the longest npy header that is read

_FIRST = np.zeros(1, dtype=np.int64)


class Position(NamedTuple):
    """Where the member of a column lies, from the begin of its sample on."""

    header: int  # first byte of its headers
    npy: int  # first byte of the npy file
    data: int  # first byte of its numbers
    end: int  # one after their last byte


class TarShard:
    """One tar, mapped.

    Attributes:
        base: where it begins in the range of addresses that holds all tars of the store.
        stride: bytes of every sample; None where they differ.
    """

    def __init__(
        self, layout: TarLayout, shard: int, file: ObjectFile, addresses: EndToEnd
    ) -> None:
        """Read the index.

        Args:
            addresses: range that the tar is mapped into.

        Raises:
            ShardCorrupt: the index is damaged, or does not fit the manifest.
        """
        self.file, self.shard = file, shard
        self._addresses = addresses
        self.base = 0
        with self._opened():
            self._bytes = addresses.bytes[self.base : self.base + file.record.bytes]
        self.rows = layout.manifest.shard_range(shard)
        self._layout = layout
        self._starts: Rows | None = None
        self.stride: int | None = None
        self._index: dict[str, Array] = {}
        self._places: dict[str, Position] = {}
        with self._refusing():
            self._read_index()
            self._read_places()

    def _opened(self) -> AbstractContextManager[int]:
        """Open the tar, and map it if that is not done yet or its name leads to another file."""

        def attach(handle: int) -> None:
            try:
                self.base = self._addresses.attach(self.shard, handle, self.file.record.bytes)
            except OSError as error:
                raise StoreError(
                    f"{self.file.path}: cannot be mapped into memory ({error.strerror}). Lift the limits: "
                    "ulimit -v and vm.max_map_count (Linux allows a process 65,530 mappings), or use larger shards."
                ) from error

        return self.file.opened(attach)

    def read(self, start: int, stop: int) -> bytes:
        """Some bytes, compared to the ledger."""
        if not 0 <= start <= stop <= self.file.record.bytes:
            raise BadTar(f"it ends at byte {self.file.record.bytes:,}, before byte {stop:,}")
        size = self.file.record.block_bytes
        if not self.file.checked[start // size : -(-stop // size)].all():
            self.check(np.array([start]), np.array([stop]), self.describe())
        return self._bytes[start:stop].tobytes()

    def check(self, starts: Rows, stops: Rows, describe: Describe) -> None:
        """Compare the blocks that hold some spans of bytes to the ledger, those that were not compared yet."""
        size = self.file.record.block_bytes
        change = np.zeros(len(self.file.checked) + 1, dtype=np.int64)
        some = stops > starts
        np.add.at(change, starts[some] // size, 1)
        np.add.at(change, (stops[some] - 1) // size + 1, -1)
        new = np.flatnonzero((change.cumsum()[:-1] > 0) & ~self.file.checked)
        if new.size:
            with self._opened() as handle:
                self.file.check(handle, new.tolist(), describe)

    def describe(self, column: str | None = None) -> Describe:
        """Words for some bytes of the tar: rows, and the column that was asked for."""

        def words(start: int, stop: int) -> str:
            found, rows = self.holds(start, stop)
            name = f'column "{column}"' if column else found
            return f"shard {self.shard} (rows {rows.start}-{rows.stop - 1}), {name}"

        return words

    def holds(self, start: int, stop: int) -> tuple[str, range]:
        if self._starts is None or start < self._starts[0]:
            return "index of the samples", self.rows
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        stop_row = int(np.searchsorted(self._starts, stop, side="left"))
        if first >= len(self.rows):
            return "mark of the end", self.rows
        rows = self.rows[first:stop_row]
        begin, end = start - int(self._starts[first]), stop - int(self._starts[first])
        names = [
            name
            for name, place in self._places.items()
            if len(rows) > 1 or (place.header < end and begin < place.end)
        ]
        return ", ".join(names) or "json", rows

    @contextmanager
    def _refusing(self, column: str | None = None) -> Iterator[None]:
        try:
            yield
        except BadTar as error:
            what = self.describe(column)(0, self.file.record.bytes)
            raise corrupt_error(self.file.path, what, str(error)) from None

    def _read_index(self) -> None:
        expected = self._expected()
        end = 0
        for member in members(self.read, 0, self.file.record.bytes):
            if not member.name.startswith(INDEX):
                break
            # What is not known here may be of a later version.
            if member.name in expected:
                if member.name in self._index:
                    raise BadTar(f"{member.name} is there twice")
                self._index[member.name] = self._array(member, *expected[member.name])
            end = member.end
        missing = expected.keys() - self._index.keys()
        if missing:
            raise BadTar(f"its index lacks {sorted(missing)}")
        starts = self._index.pop(STARTS)
        sizes = (
            np.diff(starts)
            if starts.min() >= 0 and starts.max() <= self.file.record.bytes
            else None
        )
        if (
            sizes is None
            or starts[0] != end
            or (sizes < BLOCK_BYTES).any()
            or (starts % BLOCK_BYTES).any()
        ):
            raise BadTar(f"{STARTS} does not ascend block by block from the end of the index")
        self._starts = starts
        if (sizes == sizes[0]).all():
            self.stride = int(sizes[0])

    def _expected(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and shape of the arrays of the index; -1 is any length."""
        rows = len(self.rows)
        long = np.dtype("<i8")
        expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {STARTS: (long, (rows + 1,))}
        for name, column in self._layout.indexed.items():
            values = f"{INDEX}{name}/values"
            if column.dtype is None:
                expected[values] = np.dtype("<u1"), (-1,)
                texts = rows * math.prod(column.shape)
                expected[f"{INDEX}{name}/offsets"] = long, (texts + 1,)
            else:
                expected[values] = stored_dtype(column), (rows, *column.shape)
        return expected

    def _array(self, member: Member, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An npy member as an array over the mapped bytes, which are compared to the ledger."""
        start, shape = self._npy(member, dtype, shape)
        size = math.prod(shape) * dtype.itemsize
        self.check(np.array([start]), np.array([start + size]), self.describe())
        return self._bytes[start : start + size].view(dtype).reshape(shape)

    def _npy(
        self, member: Member, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        """First byte of the numbers of an npy member, and their shape; an expected length of -1 is any."""
        if not member.regular:
            raise BadTar(f"{member.name} is not a regular file")
        data = self.read(member.data, member.data + min(member.size, _NPY_BYTES))
        header = read_npy_header(data)
        fits = len(header.shape) == len(shape) and all(
            length in (-1, found) for length, found in zip(shape, header.shape, strict=True)
        )
        if header.dtype != dtype or not fits:
            raise BadTar(
                f"{member.name} holds {header.dtype} {header.shape}, expected {dtype} {shape}"
            )
        size = header.size + math.prod(header.shape) * dtype.itemsize
        if member.size != size:
            raise BadTar(f"{member.name} has {member.size:,} bytes, expected {size:,}")
        return member.data + header.size, header.shape

    def column(self, name: str) -> Array:
        """A column that is in the index, (R, *shape), texts as objects. A copy.

        Raises:
            ShardCorrupt: texts do not follow the format.
        """
        column = self._layout.indexed[name]
        if column.dtype is not None:
            return self._index[f"{INDEX}{name}/values"].astype(column.dtype)
        found = np.empty(len(self.rows) * math.prod(column.shape), dtype=object)
        with self._refusing(name):
            found[:] = self._texts(name, np.arange(len(found)))
        return found.reshape(len(self.rows), *column.shape)

    def _texts(self, name: str, which: Rows) -> list[str]:
        values = self._index[f"{INDEX}{name}/values"]
        offsets = self._index[f"{INDEX}{name}/offsets"]
        starts, stops = offsets[which], offsets[which + 1]
        if not ((starts >= 0) & (starts <= stops) & (stops <= len(values))).all():
            raise BadTar(f'texts of column "{name}" point outside of what is there')
        data = values.data
        try:
            return [
                str(data[start:stop], "utf-8")
                for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
            ]
        except UnicodeDecodeError as error:
            raise BadTar(f'texts of column "{name}" are not UTF-8 ({error})') from None

    def _keys(self, local: Rows) -> list[str]:
        try:
            return self._layout.keys(self.shard, self._texts("sample_id", local))
        except StoreError as error:
            raise BadTar(str(error)) from None

    def begin(self, local: Rows) -> Rows:
        """Where samples begin, bytes of the tar; rows are numbered from the shard's first on."""
        assert self._starts is not None
        found: Rows = self._starts[local]
        return found

    def place(self, column: str) -> Position:
        """Where the member of a column lies in every sample."""
        return self._places[column]

    def _read_places(self) -> None:
        """Find the members of the first sample; the others are compared to it when they are read."""
        assert self._starts is not None
        origin, stop = self._starts[:2].tolist()
        key = self._keys(np.zeros(1, dtype=np.int64))[0]
        columns = {**self._layout.fixed, **self._layout.ragged}
        wanted = {f"{key}.{self._layout.suffix(name)}": c for name, c in columns.items()}
        for member in members(self.read, origin, stop):
            column = wanted.pop(member.name, None)
            if column is None:
                continue  # the json, offsets, or an added member
            if column.name in self._layout.fixed:
                data, _ = self._npy(member, stored_dtype(column), column.shape)
                end = data + column.entry_bytes
            else:
                data, end = member.data, member.end
            spots = (spot - origin for spot in (member.start, member.data, data, end))
            self._places[column.name] = Position(*spots)
        if wanted:
            raise BadTar(f"its first sample lacks {sorted(wanted)}")

    def check_rows(self, column: Column, local: Rows) -> None:
        """Compare the bytes of a column's members to the ledger, and their headers to what they should be.

        Args:
            column: of fixed size.
            local: rows, numbered from the shard's first on.
        """
        place, begin = self._places[column.name], self.begin(local)
        with self._refusing(column.name):
            inside = begin + place.end <= self.begin(local + 1)
            if inside.all():
                starts, stops = begin + place.header, begin + place.end
                self.check(starts, stops, self.describe(column.name))
                inside = self._true_headers(column, local)
            if not inside.all():
                bad = local[~inside][:1]
                raise BadTar(
                    f"row {self.rows.start + int(bad[0])}: expected member "
                    f"{self._keys(bad)[0]}.{self._layout.suffix(column.name)} at byte "
                    f"{int(self.begin(bad)[0]) + place.header:,}, as in the first sample"
                )

    def also_checked(self, column: Column, known: Mask) -> Rows:
        """Rows that need no more than another's check, because they share its blocks.

        Args:
            column: of fixed size.
            known: (R,) rows that need not be looked at.

        Returns:
            (n,) rows, numbered from the shard's first on.
        """
        assert self._starts is not None
        place, size = self._places[column.name], self.file.record.block_bytes
        local = np.flatnonzero(~known)
        local = local[self._starts[local] + place.end <= self._starts[local + 1]]
        first = (self._starts[local] + place.header) // size
        last = (self._starts[local] + place.end - 1) // size
        checked = np.concatenate([[0], np.cumsum(self.file.checked)])
        local = local[checked[last + 1] - checked[first] == last - first + 1]
        with self._refusing(column.name):
            true: Rows = local[self._true_headers(column, local)]
        return true

    def _true_headers(self, column: Column, local: Rows) -> Mask:
        """(n,) whether samples have the member of a column where the first sample has it, with its own name on it."""
        place, begin = self._places[column.name], self.begin(local)
        names = [f"{key}.{self._layout.suffix(column.name)}" for key in self._keys(local)]
        width = place.data - place.header
        found = sliding_window_view(self._bytes, width)[begin + place.header]
        like = np.frombuffer(self.read(*(self.begin(_FIRST) + place[:3:2]).tolist()), np.uint8)
        fields = name_fields(names) if place.npy - place.header == BLOCK_BYTES else None
        good = np.zeros(len(local), dtype=np.bool_)
        if fields is not None:
            good = (
                (found[:, :100] == fields[0]).all(axis=1)
                & (found[:, 345:500] == fields[1]).all(axis=1)
                & (found[:, 124:136] == like[124:136]).all(axis=1)  # size
                & (found[:, 156:265] == like[156:265]).all(axis=1)  # kind
                & (found[:, BLOCK_BYTES:] == like[BLOCK_BYTES:]).all(axis=1)  # npy header
            )
        for i in np.flatnonzero(~good).tolist():  # long names, or another writer's
            good[i] = self._is_member(column, int(begin[i]), names[i])
        return good

    def _is_member(self, column: Column, begin: int, name: str) -> bool:
        place = self._places[column.name]
        try:
            member = read_member(self.read, begin + place.header, self.file.record.bytes)
            if member is None or member.name != name:
                return False
            return self._npy(member, stored_dtype(column), column.shape)[0] == begin + place.data
        except BadTar:
            return False

    def items(self, column: Column) -> Array:
        """All items of a ragged column, (T, *shape), sample after sample. A copy.

        Raises:
            ShardCorrupt: the bytes differ from those written, or there are not as many items as the index says.
        """
        assert column.dtype is not None
        ranges = self._index[f"{INDEX}{self._layout.ranges[column.name]}/values"]
        flat = ranges.reshape(-1, 2)
        with self._refusing(column.name):
            counts = self._counts(column, flat).reshape(len(self.rows), -1).sum(axis=1)
            if int(counts.sum()) * column.entry_bytes > self.file.record.bytes:
                raise BadTar(f"{int(counts.sum()):,} items do not fit into it")
            dtype = stored_dtype(column)
            parts = [np.empty((0, *column.shape), dtype)]
            parts += [
                self._array(self._ragged_member(column, row), dtype, (counts[row], *column.shape))
                for row in np.flatnonzero(counts).tolist()
            ]
            return np.concatenate(parts).view(column.dtype)

    def _counts(self, column: Column, flat: Array) -> Rows:
        """Items of each row and view; they lie one after another."""
        origin = self.shard * self._layout.manifest.work.shard_rows * column.capacity
        most = len(self.rows) * column.capacity
        local = flat - origin
        if local.min() < 0 or local.max() > most:
            raise BadTar("the ranges of its items lie outside of the shard's")
        counts: Rows = local[:, 1] - local[:, 0]
        stops = np.cumsum(counts)
        if counts.min() < 0 or (local[:, 1] != stops).any():
            raise BadTar("the ranges of its items do not lie one after another")
        return counts

    def _ragged_member(self, column: Column, row: int) -> Member:
        begin, stop = self.begin(np.array([row, row + 1])).tolist()
        name = f"{self._keys(np.array([row]))[0]}.{self._layout.suffix(column.name)}"
        for member in members(self.read, begin, stop):
            if member.name == name:
                return member
        raise BadTar(f"row {self.rows.start + row}: no member {name}")

"""One ``.npy`` file per column, to be memory-mapped: ``numpy.load(file, mmap_mode="r")``. No pickle.

Files only grow, so a run that was stopped cuts them back to its last complete state and resumes. The header's count of
rows is filled in at the end; numpy leaves room for it.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featstore.derive.exporters.base import SAMPLE_ID, ExportBatch, ExportColumn, Exporter
from featstore.errors import StoreError
from featstore.files.array_types import Array
from featstore.files.atomic import make_folder, refused
from featstore.format.fields import Ragged

IDS_NAME = "ids.txt"

SAMPLE_FILES = {"row": "rows.npy", "label": "labels.npy"}
"""Names of the files that describe samples, where they are not the column's."""


def files_of(column: ExportColumn) -> list[str]:
    """Files of a column; two for text and ragged ones: all values one after another, and where each begins and ends."""
    if column.name == SAMPLE_ID:
        return [IDS_NAME]
    if not column.field:
        return [SAMPLE_FILES.get(column.name, f"{column.name}.npy")]
    if column.kind == "numbers":
        return [f"fields/{column.name}.npy"]
    return [f"fields/{column.name}_values.npy", f"fields/{column.name}_offsets.npy"]


class NpyExporter(Exporter):
    """Writes arrays.

    Args:
        state: Of a run that was stopped; empty at the start.
    """

    def __init__(
        self, folder: Path, columns: Sequence[ExportColumn], state: Mapping[str, int]
    ) -> None:
        make_folder(folder / "fields")
        self._columns = columns
        self._ids = _File(folder / IDS_NAME, state.get(IDS_NAME, 0))
        self._arrays: dict[str, _Array] = {}
        for column in columns:
            if column.name == SAMPLE_ID:
                continue
            values, *offsets = files_of(column)
            dtype = np.dtype(np.uint8) if column.dtype is None else column.dtype
            shape = () if column.kind == "text" else column.shape
            self._arrays[values] = _Array(folder / values, dtype, shape, state.get(values, 0))
            for name in offsets:
                array = _Array(folder / name, np.dtype(np.int64), (), state.get(name, 0))
                if not array.count:
                    array.append(np.zeros(1, np.int64))
                self._arrays[name] = array

    def add(self, batch: ExportBatch) -> None:
        """Append some rows. Raises StoreError: an id holds a line break, which a text file of one id a line cannot."""
        for column in self._columns:
            rows = batch[column.name]
            if column.name == SAMPLE_ID:
                assert not isinstance(rows, Ragged)
                self._ids.append("".join(map(_line, rows.tolist())).encode())
                continue
            values, *offsets = (self._arrays[name] for name in files_of(column))
            if column.kind == "text":
                assert not isinstance(rows, Ragged)
                rows = _joined(rows)
            if isinstance(rows, Ragged):
                offsets[0].append(rows.offsets[1:] + values.count)
                rows = rows.values
            values.append(rows)

    def state(self) -> dict[str, int]:
        """Sizes of all files, by path."""
        found = {name: array.file.sync() for name, array in self._arrays.items()}
        return {**found, IDS_NAME: self._ids.sync()}

    def finish(self) -> None:
        """Fill in how many rows there are."""
        for array in self._arrays.values():
            array.write_header()
        self.state()

    def close(self) -> None:
        for file in [self._ids, *(array.file for array in self._arrays.values())]:
            with suppress(OSError):  # a full disk was reported before
                file.handle.close()


class _File:
    """A file that grows from a size on that is known to be true."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        with refused(path, size):
            self.handle: BinaryIO = path.open("r+b" if size else "wb")
            self.handle.truncate(size)
            self.handle.seek(size)

    def append(self, data: bytes | memoryview) -> None:
        with refused(self.path, len(data)):
            self.handle.write(data)

    def sync(self) -> int:
        """Bytes of the file, all on the disk."""
        with refused(self.path, 0):
            self.handle.flush()
            os.fsync(self.handle.fileno())
            return self.handle.seek(0, os.SEEK_END)


class _Array:
    """An array in a file, to which rows are appended."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> None:
        self.dtype, self.shape, self.count = dtype, shape, 0
        self.file = _File(path, size)
        if not size:
            self.write_header()
        row_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self.count = (size - len(self._header())) // row_bytes if size else 0

    def _header(self) -> bytes:
        """Of one length, however many rows there are: numpy pads it so that the first axis can grow."""
        text = BytesIO()
        descr = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(
            text, {"descr": descr, "fortran_order": False, "shape": (self.count, *self.shape)}
        )
        return text.getvalue()

    def write_header(self) -> None:
        with refused(self.file.path, 128):
            self.file.handle.seek(0)
            self.file.handle.write(self._header())
            self.file.handle.seek(0, os.SEEK_END)

    def append(self, rows: Array) -> None:
        self.count += len(rows)
        if rows.size:
            self.file.append(np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8).data)


def _line(sample_id: str) -> str:
    if "\n" in sample_id:
        raise StoreError(
            f"the id {sample_id!r} holds a line break, and {IDS_NAME} has one id a line. Use --format parquet or hf."
        )
    return f"{sample_id}\n"


def _joined(texts: Array) -> Ragged:
    """UTF-8 of all texts, one after another."""
    data = [text.encode() for text in texts.reshape(-1).tolist()]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int64)
    return Ragged(np.frombuffer(b"".join(data), np.uint8), ends)

"""What tars and Parquet files hold, as compact arrays, and the file in the cache folder that keeps it between starts.

A file is listed again when its size, its time of change or the tag of the server differs from what was kept. A listing
that is damaged, or was written by another version, is ignored.
"""

# N samples, T tars

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from featstore.errors import StoreWriteError
from featstore.files.atomic import write_bytes
from featstore.files.cache_folder import cache_folder
from featstore.files.numpy_files import read_npz

VERSION = 1  # of the files; another version is ignored
STEP = 65_536  # ids that are decoded at a time where all are wanted

Array = npt.NDArray[np.int64]


class Ids(Sequence[str]):
    """Texts in one block of bytes; a list of ``str`` takes about five times the memory.

    Args:
        blob: the texts in UTF-8, one after another; bytes that are no UTF-8 are kept as surrogates.
        ends: (N,) end of each text in the blob.
    """

    def __init__(self, blob: bytes, ends: Array) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Ids":
        packed = [text.encode("utf-8", "surrogateescape") for text in texts]
        return cls(b"".join(packed), np.cumsum([len(text) for text in packed], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Ids"]) -> "Ids":
        """Put several after each other."""
        starts = np.cumsum([0, *(len(part.blob) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(b"".join(part.blob for part in parts), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            rows = range(len(self))[at]
            if rows.step == 1 and len(rows):
                return list(self._decoded(rows.start, rows.stop))
            return [self[row] for row in rows]
        row = range(len(self))[at]
        start = int(self.ends[row - 1]) if row else 0
        return self.blob[start : int(self.ends[row])].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), STEP):
            yield from self._decoded(start, min(start + STEP, len(self)))

    def _decoded(self, start: int, stop: int) -> Iterator[str]:
        ends = self.ends[max(0, start - 1) : stop].tolist()
        for first, last in pairwise(ends if start else [0, *ends]):
            yield self.blob[first:last].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class FileListing:
    """The samples of one file."""

    name: str  # of the file, as ids begin
    stamp: str  # of the file when it was listed
    ids: Ids  # (n,) ids
    spans: Array  # (n, 2) offset and size of each image, bytes; in Parquet files row group and row of it
    labels: Array  # (n,) class of each image
    notes: list[str] = field(default_factory=list)  # for the user
    class_names: list[str] = field(default_factory=list)  # where labels have names in the file


def listing_path(*key: object) -> Path:
    """Where the listing of a source is kept."""
    digest = hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest()[:32]
    return cache_folder() / "listings" / f"{digest}.npz"


def read_listing(path: Path) -> dict[str, FileListing]:
    """Read a kept listing, by name of the file; {} if there is none that can be read."""
    try:
        file = read_npz(path.read_bytes())
        head = json.loads(file["head"].tobytes())
        blob, ends = file["blob"].tobytes(), file["ends"]
        spans, labels = file["spans"], file["labels"]
        found, row, byte = {}, 0, 0
        for name, stamp, rows, size, notes, *names in head:
            at = slice(row, row + rows)
            ids = Ids(blob[byte : byte + size], ends[at] - byte)
            found[name] = FileListing(name, stamp, ids, spans[at], labels[at], notes, *names)
            row, byte = row + rows, byte + size
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    whole = (row, byte, row, row) == (len(ends), len(blob), len(spans), len(labels))
    return found if whole else {}


def write_listing(path: Path, files: Sequence[FileListing]) -> None:
    """Keep a listing for later starts; without a folder that can be written, nothing is kept."""
    head = [
        [file.name, file.stamp, len(file.ids), len(file.ids.blob), file.notes, file.class_names]
        for file in files
    ]
    ids = Ids.joined([file.ids for file in files])
    arrays: dict[str, Any] = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "blob": np.frombuffer(ids.blob, np.uint8),
        "ends": ids.ends,
        "spans": np.concatenate([file.spans for file in files]),
        "labels": np.concatenate([file.labels for file in files]),
    }
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    with suppress(OSError, StoreWriteError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, packed.getvalue())

"""What tars and Parquet files hold, as compact arrays, and the file in the cache folder that keeps it between starts.

A file is listed again when its size, its time of change or the tag of the server differs from what was kept. A listing
that is damaged, or was written by another version, is ignored.
"""

# N samples, T tars

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import google_crc32c
import numpy as np
import numpy.typing as npt

from featstore.errors import SourceError, StoreWriteError
from featstore.files.array_types import Bytes
from featstore.files.atomic import TEMPORARY_PREFIX, write_bytes
from featstore.files.cache_folder import cache_folder
from featstore.format.ids import check_sample_ids, ids_sha256

VERSION = 2  # of the files; another version is ignored
MAGIC = 0x32676E697473696C  # "listing2" in ASCII: the file is whole
TAIL_BYTES = 5 * 8
UNCHECKED_BYTES = 2 * 8  # of the tail: the checksum and MAGIC
STEP = 65_536  # ids that are decoded at a time where all are wanted

Array = npt.NDArray[np.int64]


class Ids(Sequence[str]):
    """Texts in one block of bytes; a list of ``str`` takes about five times the memory.

    Args:
        blob: the texts in UTF-8, one after another; bytes that are no UTF-8 are kept as surrogates.
        ends: (N,) end of each text in the blob.
        start: where the first text begins in the blob.
        sha256: ``ids_sha256`` of texts that passed ``check_sample_ids``; "" if they were not checked.
    """

    def __init__(
        self, blob: bytes | Bytes, ends: Array, start: int = 0, *, sha256: str = ""
    ) -> None:
        self.blob, self.ends, self.start, self.sha256 = blob, ends, start, sha256
        self._view = memoryview(blob)  # type: ignore[arg-type]  # arrays are buffers too

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_view": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _view=memoryview(state["blob"]))

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Ids":
        packed = [text.encode("utf-8", "surrogateescape") for text in texts]
        return cls(b"".join(packed), np.cumsum([len(text) for text in packed], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Ids"]) -> "Ids":
        """Put several after each other."""
        starts = np.cumsum([0, *(part.nbytes for part in parts)])
        ends = [part.ends - part.start + start for part, start in zip(parts, starts, strict=False)]
        blobs = [part._view[part.start : part.start + part.nbytes] for part in parts]
        return cls(b"".join(blobs), np.concatenate(ends))

    @property
    def nbytes(self) -> int:
        """Bytes of all texts."""
        return int(self.ends[-1]) - self.start if len(self.ends) else 0

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
        start = int(self.ends[row - 1]) if row else self.start
        return str(self._view[start : int(self.ends[row])], "utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), STEP):
            yield from self._decoded(start, min(start + STEP, len(self)))

    def _decoded(self, start: int, stop: int) -> Iterator[str]:
        begin = int(self.ends[start - 1]) if start else self.start
        ends = (self.ends[start:stop] - begin).tolist()
        blob = bytes(self._view[begin : begin + ends[-1]])
        for first, last in pairwise([0, *ends]):
            yield blob[first:last].decode("utf-8", "surrogateescape")


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


@dataclass(frozen=True)
class Listing:
    """The samples of several files, in order."""

    files: list[FileListing]
    ids: Ids  # (N,) ids of all files
    spans: Array  # (N, 2)

    @property
    def stamps(self) -> list[tuple[str, str]]:
        """Name and stamp of each file."""
        return [(file.name, file.stamp) for file in self.files]

    @classmethod
    def of(cls, files: list[FileListing]) -> "Listing":
        """Put those of single files after each other, and check the ids."""
        ids = Ids.joined([file.ids for file in files])
        with suppress(SourceError):  # raised again where the source is opened
            check_sample_ids(ids, where="")
            ids.sha256 = ids_sha256(ids)
        return cls(files, ids, np.concatenate([file.spans for file in files]))


def listing_path(*key: object) -> Path:
    """Where the listing of a source is kept."""
    digest = hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest()[:32]
    return cache_folder() / "listings" / f"{digest}.listing"


def read_listing(path: Path) -> Listing | None:
    """Map a kept listing into memory, which all processes of a machine share; None if there is none that can be read.

    A file is the ids in UTF-8, zeros up to a multiple of 8, int64 ``ends`` (N,), ``spans`` (N, 2), ``labels`` (N,),
    JSON, and five int64: bytes of ids, N, bytes of JSON, CRC-32C of all before, ``MAGIC``.
    """
    try:
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))
        size, rows, head_bytes, crc, magic = data[-TAIL_BYTES:].view(np.int64).tolist()
        first, last = -(-size // 8) * 8, len(data) - TAIL_BYTES - head_bytes
        if (magic, crc) != (MAGIC, google_crc32c.value(data[:-UNCHECKED_BYTES])):
            return None
        blob, numbers = data[:size], data[first:last].view(np.int64)
        ends, spans, labels = np.split(numbers, [rows, 3 * rows])
        spans = spans.reshape(-1, 2)
        files, row, byte = [], 0, 0
        sha256, described = json.loads(data[last:-TAIL_BYTES].tobytes())
        for name, stamp, count, nbytes, notes, names in described:
            at = slice(row, row + count)
            ids = Ids(blob, ends[at], byte)
            files.append(FileListing(name, stamp, ids, spans[at], labels[at], notes, names))
            row, byte = row + count, byte + nbytes
    except (OSError, ValueError, TypeError):
        return None
    return Listing(files, Ids(blob, ends, sha256=sha256), spans)


def keep_listing(path: Path, listing: Listing) -> Listing:
    """Keep a listing for later starts, and return it as it is kept; without a folder that can be written, as it is.

    A kept listing of the same files is not replaced: another machine may have mapped it, and on a network disk it would
    lose what it maps.
    """
    ids, rows = listing.ids, len(listing.ids)
    described = [
        [file.name, file.stamp, len(file.ids), file.ids.nbytes, file.notes, file.class_names]
        for file in listing.files
    ]
    head = json.dumps([ids.sha256, described]).encode()
    labels = np.concatenate([file.labels for file in listing.files])
    arrays = [
        np.ascontiguousarray(part).view(np.uint8).reshape(-1)
        for part in (ids.ends, listing.spans, labels)
    ]
    sizes = np.array([ids.nbytes, rows, len(head)], np.int64).tobytes()
    parts: list[bytes | Bytes] = [bytes(ids.blob), bytes(-ids.nbytes % 8), *arrays, head, sizes]
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    tail = np.array([crc, MAGIC], np.int64)
    with suppress(OSError, StoreWriteError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        write_bytes(temporary, *parts, tail.tobytes())
        try:
            path.hardlink_to(temporary)
        except OSError:
            if not _same_files(read_listing(path), listing):
                temporary.replace(path)
        temporary.unlink(missing_ok=True)
    found = read_listing(path)
    return found if found is not None and _same_files(found, listing) else listing


def _same_files(one: Listing | None, other: Listing) -> bool:
    """Whether two listings are of the same files, unchanged."""
    return one is not None and one.stamps == other.stamps

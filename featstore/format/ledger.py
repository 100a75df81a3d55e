"""The ledger: one small JSON file per committed shard. A shard without an entry does not exist.

Zarr reads a missing object as fill values, so the ledger decides. An entry is written after every object of its shard
is durable; it holds their sizes and a checksum for each block of bytes. ``complete.json`` is written after the last
shard, so that opening a store takes the same time for any number of shards.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from featstore.errors import ManifestMismatch, ShardCorrupt, StoreError, command
from featstore.files.atomic import sync_folder, write_bytes
from featstore.files.untrusted import check_real_folder, read_plain
from featstore.format.checksummed_json import seal, unseal
from featstore.format.manifest import MANIFEST_NAME
from featstore.format.manifest_records import SHA256

LEDGER_FOLDER = "ledger"
COMPLETE_NAME = "complete.json"

ENTRY = re.compile(r"[0-9]{8,18}\.json")  # names of entries
MOST_NUMBER = 2**62  # rows and sizes are numbers of 64 bits


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ObjectRecord(_Record):
    """Size and checksums of one file of a shard."""

    bytes: int = Field(ge=0, le=MOST_NUMBER)
    block_bytes: int = Field(gt=0, le=MOST_NUMBER)
    """The file is checked in blocks of this many bytes; the last one is shorter."""
    crc32c: str = Field(pattern=r"([0-9a-f]{8})*")
    """CRC-32C of each block, eight hexadecimal digits each, one after another."""

    @model_validator(mode="after")
    def _check(self) -> "ObjectRecord":
        if len(self.crc32c) != 8 * self.num_blocks:
            raise ValueError(f"{len(self.crc32c)} digits of checksums for {self.num_blocks} blocks")
        return self

    @property
    def num_blocks(self) -> int:
        return -(-self.bytes // self.block_bytes)

    def block(self, number: int) -> range:
        start = number * self.block_bytes
        return range(start, min(start + self.block_bytes, self.bytes))

    def crc(self, number: int) -> int:
        """Checksum of one block."""
        return int(self.crc32c[8 * number : 8 * number + 8], 16)


class InvalidRow(_Record):
    """A row without a usable feature, and why."""

    row: int = Field(ge=0, le=MOST_NUMBER)
    sample_id: str
    reason: str


class ShardRecord(_Record):
    """One entry: a shard whose objects are all on disk."""

    shard: int = Field(ge=0)
    rows: tuple[int, int]
    """First row, and the one after the last."""
    objects: dict[str, ObjectRecord]
    """By path inside the store."""
    invalid: tuple[InvalidRow, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    """Time spent on this shard: load, teacher, write."""


class CompleteRecord(_Record):
    """The store is complete: every shard has an entry."""

    shards: int = Field(gt=0)
    invalid_rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    """Of all objects."""
    manifest_sha256: str = Field(default="", pattern=f"({SHA256})?")
    """SHA-256 of ``manifest.json``: a manifest of another store does not fit."""
    entries_sha256: str = Field(default="", pattern=f"({SHA256})?")
    """SHA-256 over the bytes of all entries in order."""


def entry_path(store: Path, shard: int) -> Path:
    """Path of a shard's entry, whether or not it exists."""
    return store / entry_name(shard)


def entry_name(shard: int) -> str:
    """Path of a shard's entry inside a store."""
    return f"{LEDGER_FOLDER}/{shard:08d}.json"


def complete_path(store: Path) -> Path:
    """Path of ``complete.json``, whether or not it exists."""
    return store / LEDGER_FOLDER / COMPLETE_NAME


def entry_bytes(record: _Record) -> bytes:
    """Bytes of an entry or of ``complete.json``."""
    return seal(record.model_dump(mode="json"))


def write_entry(store: Path, record: ShardRecord) -> None:
    """Write the entry of a shard, which makes the shard exist."""
    write_bytes(entry_path(store, record.shard), entry_bytes(record))


def parse_entry(data: bytes) -> ShardRecord:
    """Parse an entry; a ValueError says what is wrong with it."""
    return ShardRecord.model_validate(unseal(data))


def read_entry(store: Path, shard: int) -> ShardRecord:
    """Read one entry."""
    path = entry_path(store, shard)
    try:
        record = parse_entry(_read(store, path))
    except FileNotFoundError:
        raise ShardCorrupt(
            f"{path}: missing, so shard {shard} does not exist. Run {command('extract')} with the "
            "settings this store was made with; it makes that shard."
        ) from None
    except OSError as error:
        raise ShardCorrupt(f"{path}: cannot be read ({error.strerror}). Check the disk.") from None
    except ValueError as error:
        raise ShardCorrupt(
            f"{path}: not a ledger entry ({first_problem(error)}). Run {command('extract')} --repair with the "
            "same settings; it makes that shard again."
        ) from None
    if record.shard != shard:
        raise ShardCorrupt(f"{path}: is the entry of shard {record.shard}, expected {shard}.")
    return record


def committed_shards(store: Path, num_shards: int) -> Sequence[int]:
    """Numbers of the shards that have an entry, ascending; a complete store is not listed.

    Raises:
        StoreError: An entry has a number that the store does not have.
        ShardCorrupt: ``complete.json`` does not follow the format, or counts other shards.
        ManifestMismatch: ``complete.json`` was written with another manifest.
    """
    if read_complete(store, num_shards) is not None:
        return range(num_shards)
    return listed_shards(store, num_shards)


def listed_shards(store: Path, num_shards: int) -> list[int]:
    """As ``committed_shards``, by listing the folder."""
    folder = store / LEDGER_FOLDER
    try:
        check_real_folder(folder)
        names = os.listdir(folder)  # noqa: PTH208  # ten times as fast
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{folder}: cannot be listed ({error.strerror}).") from None
    shards = sorted(int(name[:-5]) for name in names if ENTRY.fullmatch(name))
    if shards and shards[-1] >= num_shards:
        raise StoreError(
            f"{entry_path(store, shards[-1])}: shard {shards[-1]} does not exist: the manifest has {num_shards} shards."
        )
    return shards


def pending_shards(store: Path, num_shards: int) -> list[int]:
    """Numbers of the shards that have no entry yet, ascending."""
    done = committed_shards(store, num_shards)
    if isinstance(done, range):
        return []
    missing = np.ones(num_shards, dtype=np.bool_)
    missing[list(done)] = False
    return [int(shard) for shard in np.flatnonzero(missing)]


def read_complete(store: Path, num_shards: int) -> CompleteRecord | None:
    """Read ``complete.json``; None if the store is not complete.

    Raises:
        ShardCorrupt: It does not follow the format, or counts other shards.
        ManifestMismatch: It was written with another manifest.
    """
    path = complete_path(store)
    try:
        record = CompleteRecord.model_validate(unseal(_read(store, path)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ShardCorrupt(f"{path}: cannot be read ({error.strerror}). Check the disk.") from None
    except ValueError as error:
        raise ShardCorrupt(
            f"{path}: does not follow the format ({first_problem(error)}). Delete it and run {command('extract')} with "
            "the same settings; nothing else is lost."
        ) from None
    if record.shards != num_shards:
        raise ShardCorrupt(
            f"{path}: {record.shards} shards, expected {num_shards} as in the manifest. Delete it and run "
            f"{command('extract')} with the same settings."
        )
    if record.manifest_sha256 not in ("", _sha256(store, MANIFEST_NAME)):
        raise ManifestMismatch(
            f"{path}: the store was completed with another {MANIFEST_NAME} than the one that is there now. Put the old "
            f"one back; or, if it was changed on purpose, delete {path.name} and run {command('extract')} with the "
            "same settings."
        )
    return record


def mark_complete(store: Path, entries: Iterable[ShardRecord]) -> CompleteRecord:
    """Write ``complete.json``. Call it when every shard has an entry; a second call changes nothing."""
    shards = invalid = size = 0
    digest = hashlib.sha256()
    for entry in entries:
        shards += 1
        digest.update(_read(store, entry_path(store, entry.shard)))
        invalid += len(entry.invalid)
        size += sum(item.bytes for item in entry.objects.values())
    record = CompleteRecord(
        shards=shards,
        invalid_rows=invalid,
        bytes=size,
        manifest_sha256=_sha256(store, MANIFEST_NAME),
        entries_sha256=digest.hexdigest(),
    )
    write_bytes(complete_path(store), entry_bytes(record))
    return record


def remove_entries(store: Path, shards: Iterable[int]) -> None:
    """Delete ``complete.json``, then the entries of some shards; their objects remain until they are written again."""
    complete_path(store).unlink(missing_ok=True)
    for shard in shards:
        entry_path(store, shard).unlink(missing_ok=True)
    sync_folder(store / LEDGER_FOLDER)


def _sha256(store: Path, name: str) -> str:
    return hashlib.sha256(read_plain(store, name)).hexdigest()


def _read(store: Path, path: Path) -> bytes:
    return read_plain(store, path.relative_to(store).as_posix())


def first_problem(error: ValueError) -> str:
    """What is wrong with a file that does not follow a model, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    where = ".".join(str(part) for part in error.errors()[0]["loc"])
    return f"{error.error_count()} problems, first: {where} {error.errors()[0]['msg']}"

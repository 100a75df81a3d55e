"""The ledger: one small JSON file per committed shard. What has no entry does not exist.

Zarr cannot tell a missing object from one full of fill values; the ledger can. An entry is written after every
object of its shard is durable, and it carries their sizes and checksums.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featstore.atomic import write_bytes
from featstore.errors import ShardCorrupt, StoreError

LEDGER_FOLDER = "ledger"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ObjectRecord(_Record):
    """Size and checksum of one file of a shard."""

    bytes: int = Field(ge=0)
    crc32c: str = Field(pattern=r"[0-9a-f]{8}")


class InvalidRow(_Record):
    """A row without a usable feature, and why."""

    row: int = Field(ge=0)
    sample_id: str
    reason: str


class ShardRecord(_Record):
    """One entry: a shard that is wholly on disk."""

    shard: int = Field(ge=0)
    rows: tuple[int, int]
    """First row, and the one after the last."""
    objects: dict[str, ObjectRecord]
    """By path inside the store."""
    invalid: tuple[InvalidRow, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    """Time spent on this shard: load, teacher, write."""


def entry_path(store: Path, shard: int) -> Path:
    """Path of a shard's entry, whether or not it exists."""
    return store / LEDGER_FOLDER / f"{shard:08d}.json"


def write_entry(store: Path, record: ShardRecord) -> None:
    """Commit a shard: from now on it exists."""
    text = json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=1) + "\n"
    write_bytes(entry_path(store, record.shard), text.encode())


def read_entry(store: Path, shard: int) -> ShardRecord:
    """Read one entry.

    Raises:
        ShardCorrupt: it is missing, or does not follow the format.
    """
    path = entry_path(store, shard)
    try:
        record = ShardRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ShardCorrupt(f"{path}: missing, so shard {shard} was never committed.") from None
    except ValidationError as error:
        raise ShardCorrupt(
            f"{path}: not a ledger entry ({error.error_count()} problems, first: {error.errors()[0]['msg']}). "
            "Delete the file and run extract.py with the same settings; it makes that shard again."
        ) from None
    if record.shard != shard:
        raise ShardCorrupt(f"{path}: speaks of shard {record.shard}, expected {shard}.")
    return record


def committed_shards(store: Path, num_shards: int) -> list[int]:
    """Numbers of the shards that have an entry, ascending.

    Raises:
        StoreError: an entry lies outside the store's range.
    """
    folder = store / LEDGER_FOLDER
    if not folder.is_dir():
        return []
    shards = sorted(int(path.stem) for path in folder.glob("[0-9]*.json") if path.stem.isdecimal())
    if shards and shards[-1] >= num_shards:
        raise StoreError(
            f"{entry_path(store, shards[-1])}: shard {shards[-1]} lies beyond the {num_shards} shards of the manifest."
        )
    return shards


def pending_shards(store: Path, num_shards: int) -> list[int]:
    """Numbers of the shards that have no entry yet, ascending."""
    done = set(committed_shards(store, num_shards))
    return [shard for shard in range(num_shards) if shard not in done]

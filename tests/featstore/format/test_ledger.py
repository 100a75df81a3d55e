"""Damage: whatever happens to the files of a store, the reader names shard, column and rows, and never guesses."""

import json
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs.vlen import VLenUTF8

from featstore import FeatureStore
from featstore.errors import FeatstoreError, ShardCorrupt, StoreError, StoreIncomplete
from featstore.format.checksummed_json import seal, unseal
from featstore.format.ledger import (
    committed_shards,
    complete_path,
    entry_path,
    pending_shards,
    read_complete,
    read_entry,
    remove_entries,
)
from tests.featstore.stores import make_columns, make_manifest, write_store

MANIFEST = make_manifest(num_rows=20, shard_rows=8)
OBJECT = "fields/cls/c/1/0/0"
WHERE = r'shard 1 \(rows 8-15\), column "fields/cls"'


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three shards that no test touches."""
    return write_store(tmp_path_factory.mktemp("sound") / "s", MANIFEST, make_columns(MANIFEST))


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(sound, tmp_path / "s")


def edit_entry(path: Path, number: int, **changes: Any) -> None:
    """Change keys of a ledger entry, and seal it again."""
    entry = entry_path(path, number)
    entry.write_bytes(seal({**unseal(entry.read_bytes()), **changes}))


def touch_everything(path: Path) -> None:
    """Read all there is in a store."""
    store = FeatureStore.open(path)
    rows = np.flatnonzero(store.valid)
    assert store.sample_ids
    assert store.labels.shape == store.content_sha256.shape[:1]
    for name in store.manifest.fields:
        store.gather(name, rows)
    store.invalid_rows()


def test_the_sound_store_reads(path: Path) -> None:
    """Without damage nothing is refused."""
    touch_everything(path)


def test_a_missing_object(path: Path) -> None:
    """Zarr reads a missing object as zeros; we say that it is missing, and the other shards still read."""
    (path / OBJECT).unlink()
    store = FeatureStore.open(path)
    store.gather("cls", [0, 16])
    with pytest.raises(ShardCorrupt, match=WHERE + r": missing, expected [0-9,]+ .*--repair"):
        store.gather("cls", [0, 9])


@pytest.mark.parametrize("keep", [0, 1, -1])
def test_a_truncated_object(path: Path, keep: int) -> None:
    """A size other than the ledger's, by as little as one byte, names both sizes."""
    data = (path / OBJECT).read_bytes()
    (path / OBJECT).write_bytes(data[:keep])
    with pytest.raises(
        ShardCorrupt, match=WHERE + f": {len(data[:keep]):,} bytes, expected {len(data):,} bytes"
    ):
        FeatureStore.open(path).gather("cls", [8])


@pytest.mark.parametrize("place", [0, 100])
def test_a_flipped_bit(path: Path, place: int) -> None:
    """One flipped bit of the payload is found when the block it lies in is touched first."""
    data = bytearray((path / OBJECT).read_bytes())
    data[place] ^= 0x10
    (path / OBJECT).write_bytes(data)
    with pytest.raises(ShardCorrupt, match=WHERE + ": crc32c [0-9a-f]{8}, expected [0-9a-f]{8}"):
        FeatureStore.open(path).gather("cls", [8])


@pytest.mark.parametrize("column", ["sample_id", "valid", "label", "content_sha256"])
def test_damage_of_the_small_columns(path: Path, column: str) -> None:
    """Ids, validity, labels and hashes are checked like features."""
    (file,) = [item for item in (path / column / "c" / "2").rglob("*") if item.is_file()] or [
        path / column / "c" / "2"
    ]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ShardCorrupt, match=rf'\b2\b.*16-19.*"{column}".*crc32c'):
        touch_everything(path)


def test_a_flipped_bit_of_the_index_changes_no_row(path: Path, sound: Path) -> None:
    """Rows are found by their number, not through the index that stock readers use; rows stay true."""
    for place in (-1, -5, -20):
        data = bytearray((sound / OBJECT).read_bytes())
        data[place] ^= 0x10
        (path / OBJECT).write_bytes(data)
        rows = FeatureStore.open(path).gather("cls", range(20))
        np.testing.assert_array_equal(rows, FeatureStore.open(sound).gather("cls", range(20)))


def test_taking_a_shard_back_and_making_it_again(path: Path, sound: Path) -> None:
    """Without its entry a shard is pending, and the store no longer complete; writing it again mends the store."""
    (path / OBJECT).write_bytes(b"")
    remove_entries(path, [1])
    assert pending_shards(path, 3) == [1]
    with pytest.raises(StoreIncomplete, match=r"\b1\b.*\b3\b"):
        FeatureStore.open(path)
    write_store(path, MANIFEST, make_columns(MANIFEST), shards=[1])
    assert (path / OBJECT).read_bytes() == (sound / OBJECT).read_bytes()
    touch_everything(path)


def test_the_mark_of_a_complete_store(path: Path) -> None:
    """It makes opening independent of the number of shards; a wrong one is refused, without one entries are listed."""
    assert committed_shards(path, 3) == range(3)
    mark = read_complete(path, 3)
    assert mark is not None
    assert mark.bytes == sum(
        item.bytes for shard in range(3) for item in read_entry(path, shard).objects.values()
    )
    with pytest.raises(ShardCorrupt, match=r"complete.json.*\b3\b.*\b4\b"):
        read_complete(path, 4)
    complete_path(path).write_bytes(b"{")
    with pytest.raises(ShardCorrupt, match=r"complete.json"):
        FeatureStore.open(path)
    complete_path(path).unlink()
    assert committed_shards(path, 3) == [0, 1, 2]
    touch_everything(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"shard": 1',
        b"[" * 100_000,
        b'{"shard": 1, "rows": [8, 16], "objects": {}, "later": 1}',
        b'{"shard": 1, "objects": {"x": {"bytes": -1, "block_bytes": 1, "crc32c": ""}}}',
        b'{"shard": 1, "objects": {"x": {"bytes": 1, "block_bytes": 1, "crc32c": "zz"}}}',
        b'{"shard": 1, "objects": {"x": {"bytes": 9, "block_bytes": 1, "crc32c": "00000000"}}}',
        b'{"shard": 1, "objects": {"x": {"bytes": 9, "block_bytes": 0, "crc32c": "00000000"}}}',
        b'{"shard": 1, "rows": [8, 16], "objects": {}, "seconds": {"load": NaN}}',
    ],
    ids=lambda content: content[:60].decode(errors="replace"),
)
def test_garbage_for_an_entry(path: Path, content: bytes) -> None:
    """An entry that does not follow the format is ShardCorrupt with its path and what to do."""
    entry_path(path, 1).write_bytes(content)
    with pytest.raises(ShardCorrupt, match=r"00000001.json.*--repair"):
        read_entry(path, 1)
    with pytest.raises(ShardCorrupt, match=r"00000001.json"):
        touch_everything(path)


def test_a_missing_entry_is_a_missing_shard(path: Path) -> None:
    """What has no entry does not exist, also when all its objects are there."""
    entry_path(path, 2).unlink()
    with pytest.raises(ShardCorrupt, match=r"\b2\b"):
        FeatureStore.open(path).gather("cls", [16])
    complete_path(path).unlink()
    assert committed_shards(path, 3) == [0, 1]


def test_entries_that_speak_of_something_else(path: Path) -> None:
    """Another shard's number, other rows, an object left out or a shard beyond the manifest are refused."""
    edit_entry(path, 1, shard=2)
    with pytest.raises(ShardCorrupt, match=r"\b2\b.*\b1\b"):
        touch_everything(path)
    edit_entry(path, 1, shard=1, rows=[8, 12])
    with pytest.raises(ShardCorrupt, match=r"\b8\b.*\b11\b.*\b8\b.*\b15\b"):
        touch_everything(path)
    edit_entry(path, 1, rows=[8, 16], objects={})
    with pytest.raises(ShardCorrupt, match=r"00000001\.json"):
        touch_everything(path)
    complete_path(path).unlink()
    shutil.copy(entry_path(path, 0), entry_path(path, 3))
    with pytest.raises(StoreError, match=r"\b3\b.*\b3\b"):
        FeatureStore.open(path)


@pytest.mark.parametrize(
    "forged",
    [
        b"\x08\x00\x00\x00" + b"\xff\xff\xff\x7f" + b"x" * 40,
        b"\xff\xff\xff\xff" + b"x" * 60,
        b"\x08\x00\x00\x00" + b"\x02\x00\x00\x00\xff\xfe" * 8,
        b"x",
        bytes(VLenUTF8().encode(np.array(["a", "b"], dtype=object))),
    ],
    ids=["long text", "many texts", "not UTF-8", "too short", "too few"],
)
def test_forged_text_with_a_right_checksum(path: Path, forged: bytes) -> None:
    """A store of another team is untrusted: text that breaks the codec is ShardCorrupt, not a parser's error."""
    (path / "sample_id/c/1").write_bytes(forged)
    entry = unseal(entry_path(path, 1).read_bytes())
    entry["objects"]["sample_id/c/1"] = {
        "bytes": len(forged),
        "block_bytes": 2**20,
        "crc32c": f"{google_crc32c.value(forged):08x}",
    }
    entry_path(path, 1).write_text(json.dumps(entry))
    with pytest.raises(FeatstoreError, match=r'\b1\b.*8-15.*"sample_id"'):
        touch_everything(path)


def test_foreign_files_do_not_disturb(path: Path) -> None:
    """Leftovers of a kill, a lock and other people's files in the ledger change nothing."""
    (path / "ledger" / ".partial-abc").write_bytes(b"{")
    (path / "ledger" / "notes.json").write_bytes(b"{")
    (path / ".lock").write_bytes(b"")
    (path / "README.md").write_bytes(b"")
    touch_everything(path)

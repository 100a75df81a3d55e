"""A store that is repaired, replaced, deleted or cut while it is open gives its old rows or an error."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.errors import FeatstoreError, ShardCorrupt, StoreError
from featstore.format.ledger import mark_complete, read_entry, remove_entries
from featstore.format.manifest import Manifest
from tests.featstore.processes import fork, wait
from tests.featstore.stores import field, make_columns, make_manifest, write_store

ROWS, SHARD, VIEWS = 64, 16, 1
FIELDS = {
    "pages": field(1024, dtype="float32"),  # whole pages: mapped side by side
    "odd": field(100, dtype="float16"),
    "zstd": field(256, codec="zstd"),
    "bitshuffle": field(256, codec="bitshuffle"),
}
CONTAINERS = ["zarr", "webdataset"]


def make(container: str) -> Manifest:
    """A manifest of a store with a new uuid."""
    fields = {name: spec for name, spec in FIELDS.items() if spec.codec == "raw"}
    manifest = make_manifest(
        num_rows=ROWS,
        shard_rows=SHARD,
        views=VIEWS,
        fields=FIELDS if container == "zarr" else fields,
    )
    return manifest.model_copy(update={"container": container})


def rows_or_error(store: FeatureStore, columns: dict[str, Any]) -> int:
    """Read every row of every field, one shard at a time; returns how many reads were refused."""
    refused = 0
    for name in store.manifest.fields:
        for start in range(0, ROWS, SHARD):
            rows = np.arange(start, start + SHARD)
            try:
                found = store.gather(name, rows)
            except FeatstoreError:
                refused += 1
                continue
            np.testing.assert_array_equal(found, columns[f"fields/{name}"][rows])
    return refused


def objects(store: Path) -> list[Path]:
    """Objects of the fields of a store."""
    folder = store / ("shards" if (store / "shards").exists() else "fields")
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("touched", [0, 1, SHARD + 1, ROWS])
@pytest.mark.parametrize("same_uuid", [False, True])
def test_a_replaced_store(container: str, touched: int, same_uuid: bool, tmp_path: Path) -> None:
    """The other teacher's store at the same path: rows that were read stay, the others are refused.

    Also where the new store copies the manifest of the old one, and in a process that gets the open store.
    """
    manifest = make(container)
    old, new = make_columns(manifest), make_columns(manifest, seed=1)
    path = write_store(tmp_path / "store", manifest, old)
    other = manifest if same_uuid else make(container)
    write_store(tmp_path / "new", other, new)
    store = FeatureStore.open(path)
    sent = pickle.dumps(store)
    for name in store.manifest.fields:
        store.gather(name, np.arange(touched))
    path.rename(tmp_path / "old")
    (tmp_path / "new").rename(path)
    refused = rows_or_error(store, old)
    if touched < ROWS:
        with pytest.raises(StoreError, match=str(path)) as caught:
            store.gather("pages", [ROWS - 1])
        assert not isinstance(caught.value, ShardCorrupt)
    # Rows that share a checksum with rows that were read are as good as read.
    read = len(store.manifest.fields) * -(-touched // SHARD)
    assert refused == len(store.manifest.fields) * (ROWS // SHARD) - read

    def in_a_worker() -> None:
        assert rows_or_error(pickle.loads(sent), old) == 4 * len(store.manifest.fields)

    assert wait(fork(in_a_worker)) == 0
    assert wait(fork(lambda: rows_or_error(store, old))) == 0


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("touched", [0, 1, ROWS])
def test_a_deleted_store(container: str, touched: int, tmp_path: Path) -> None:
    """Rows that are mapped stay readable; the others are an error that is not about damage."""
    manifest = make(container)
    columns = make_columns(manifest)
    store = FeatureStore.open(write_store(tmp_path / "store", manifest, columns))
    for name in manifest.fields:
        store.gather(name, np.arange(touched))
    shutil.rmtree(store.path)
    rows_or_error(store, columns)
    if touched < ROWS:
        with pytest.raises(StoreError, match=str(store.path)) as caught:
            store.gather("pages", [ROWS - 1])
        assert not isinstance(caught.value, ShardCorrupt)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["pages", "odd", "zstd", "bitshuffle"])
def test_a_damaged_shard_that_is_repaired(container: str, name: str, tmp_path: Path) -> None:
    """A good file renamed over a damaged one: the reader that met the damage gets the right rows, or an error.

    The damage is behind rows that were read already, so that the damaged file is mapped.
    """
    manifest = make(container)
    if name not in manifest.fields:
        pytest.skip("tars are not compressed")
    columns = make_columns(manifest)
    path = write_store(tmp_path / "store", manifest, columns)
    for victim in objects(path):
        if container == "zarr" and f"fields/{name}/" not in str(victim):
            continue
        good = victim.read_bytes()
        for at in range(0, len(good), max(1, len(good) // 7)):
            victim.write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
            store = FeatureStore.open(path)
            before = rows_or_error(store, columns)
            arriving = tmp_path / "arriving"
            arriving.write_bytes(good)
            arriving.rename(victim)
            assert rows_or_error(store, columns) == 0, (victim, at, before)


def test_a_mapped_shard_is_exchanged_for_a_damaged_one(tmp_path: Path) -> None:
    """Blocks that were compared in the old file are compared again in the new one before it is used."""
    fields = {"wide": field(64 * 1024, dtype="float32")}  # one block for each row
    manifest = make_manifest(num_rows=8, shard_rows=8, views=1, fields=fields)
    columns = make_columns(manifest)
    path = write_store(tmp_path / "store", manifest, columns)
    store = FeatureStore.open(path)
    found = store.gather("wide", [6])
    victim = path / "fields/wide/c/0/0/0"
    data = bytearray(victim.read_bytes())
    data[6 * 4 * 64 * 1024] ^= 1
    (tmp_path / "arriving").write_bytes(data)
    (tmp_path / "arriving").rename(victim)
    with pytest.raises(ShardCorrupt, match="6-6"):
        store.gather(
            "wide", [7]
        )  # sound itself, but its file is not the one that row 6 was read from
    np.testing.assert_array_equal(store.gather("wide", [6]), found)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_shard_that_was_made_again(container: str, tmp_path: Path) -> None:
    """A repair that gives other values: a reader of before keeps the old values or gets an error, shard by shard."""
    manifest = make(container)
    old, new = make_columns(manifest), make_columns(manifest, seed=1)
    path = write_store(tmp_path / "store", manifest, old)
    store = FeatureStore.open(path)
    store.gather("pages", [0])
    for shard in (0, 2):
        remove_entries(path, [shard])
        write_store(path, manifest, new, shards=[shard])
        rows_or_error(store, old)
    mark_complete(path, [read_entry(path, shard) for shard in range(manifest.num_shards)])
    rows_or_error(store, old)
    with pytest.raises(StoreError, match="complete"):
        store.gather("pages", [2 * SHARD])


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_shard_that_is_cut(container: str, tmp_path: Path) -> None:
    """Truncated in place, before it is mapped or between two reads: an error, not a signal."""
    manifest = make(container)
    columns = make_columns(manifest)
    path = write_store(tmp_path / "store", manifest, columns)

    def read() -> None:
        store = FeatureStore.open(path)
        for victim in objects(path):
            os.truncate(victim, victim.stat().st_size // 2)
        for name in manifest.fields:
            with pytest.raises(ShardCorrupt, match="bytes"):
                store.gather(name, [0])

    assert wait(fork(read)) == 0


def test_a_mapped_shard_that_is_cut(tmp_path: Path) -> None:
    """Size is compared before more of a mapped file is used; what was compared before cannot be protected."""
    fields = {"wide": field(64 * 1024, dtype="float32")}
    manifest = make_manifest(num_rows=8, shard_rows=8, views=1, fields=fields)
    path = write_store(tmp_path / "store", manifest, make_columns(manifest))

    def read() -> None:
        store = FeatureStore.open(path)
        store.gather("wide", [0])
        os.truncate(path / "fields/wide/c/0/0/0", 4 * 64 * 1024)
        with pytest.raises(ShardCorrupt, match="bytes"):
            store.gather("wide", [7])

    assert wait(fork(read)) == 0

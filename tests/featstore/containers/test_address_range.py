"""Reading through one range of addresses: the same rows and the same refusals as shard by shard."""

import gc
import pickle
from pathlib import Path

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.containers.address_range import PAGE_BYTES, SideBySide
from featstore.containers.zarr import ZarrBackend
from featstore.containers.zarr_columns import MappedColumn, ShardColumn
from featstore.errors import ConfigError, MissingSamples, ShardCorrupt
from tests.featstore.stores import Array, field, make_columns, make_manifest, write_store

NUM_ROWS = 83
SHARD_ROWS = 16


def page_store(path: Path, **options: object) -> tuple[Path, dict[str, Array]]:
    """A store whose field "cls" fills whole pages per shard, and whose field "odd" does not."""
    width = PAGE_BYTES // SHARD_ROWS // 2 // 2  # of float16, for two views
    fields = {"cls": field(width), "odd": field(width - 1)}
    manifest = make_manifest(num_rows=NUM_ROWS, shard_rows=SHARD_ROWS, fields=fields)
    columns = make_columns(manifest, invalid=[20])
    write_store(path, manifest, columns, reasons={20: "not an image"}, **options)  # type: ignore[arg-type]
    return path, columns


def test_fields_of_whole_pages_are_mapped_others_are_not(tmp_path: Path) -> None:
    """The layout alone decides; both kinds give the rows that were written, in any order, with repeats."""
    path, columns = page_store(tmp_path / "s")
    store = FeatureStore.open(path)
    backend = ZarrBackend(path, store.manifest)
    assert isinstance(backend.open_column("fields/cls"), MappedColumn)
    assert isinstance(backend.open_column("fields/odd"), ShardColumn)
    generator = np.random.default_rng(0)
    for _ in range(50):
        rows = generator.choice(np.delete(np.arange(NUM_ROWS), 20), 40)
        for name in ("cls", "odd"):
            np.testing.assert_array_equal(store.gather(name, rows), columns[f"fields/{name}"][rows])


@pytest.mark.parametrize("name", ["cls", "odd"])
def test_rows_are_written_into_the_given_array(tmp_path: Path, name: str) -> None:
    """``out`` is filled and returned; one of another shape, dtype or layout is refused and stays as it was."""
    path, columns = page_store(tmp_path / "s")
    store = FeatureStore.open(path)
    expected = columns[f"fields/{name}"][[82, 3]]
    out = np.zeros_like(expected)
    assert store.gather(name, [82, 3], out=out) is out
    np.testing.assert_array_equal(out, expected)
    for wrong in (out[:1], out.astype(np.float32), np.zeros((2, *out.shape[:0:-1]), out.dtype).T):
        before = wrong.copy()
        with pytest.raises(ConfigError, match="float16"):
            store.gather(name, [0, 1], out=wrong)
        np.testing.assert_array_equal(wrong, before)


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    """An empty request touches nothing and gives an empty array of the right shape."""
    path, columns = page_store(tmp_path / "s")
    assert FeatureStore.open(path).gather("cls", []).shape == (0, *columns["fields/cls"].shape[1:])


def test_a_shard_is_checked_before_its_rows_are_reachable(tmp_path: Path) -> None:
    """A flipped byte or a shortened object is an error at the first touch, and again; other shards still read."""
    path, columns = page_store(tmp_path / "s")
    target = path / "fields/cls/c/2/0/0"
    data = bytearray(target.read_bytes())
    data[100] ^= 1
    target.write_bytes(data)
    short = path / "fields/cls/c/3/0/0"
    short.write_bytes(short.read_bytes()[:-8])
    store = FeatureStore.open(path)
    for rows in ([33], [0, 33], [49], [33]):
        with pytest.raises(ShardCorrupt, match=r"\"fields/cls\""):
            store.gather("cls", rows)
    np.testing.assert_array_equal(store.gather("cls", [0, 82]), columns["fields/cls"][[0, 82]])


def test_missing_and_invalid_rows_are_refused(tmp_path: Path) -> None:
    """Rows of a shard that is not there are never touched in the mapped range; they are refused by name."""
    path, columns = page_store(tmp_path / "s", shards=[0, 1, 5])
    store = FeatureStore.open(path, allow_incomplete=True)
    for _ in range(2):
        with pytest.raises(MissingSamples, match=r"\b40\b"):
            store.gather("cls", [1, 40])
        with pytest.raises(MissingSamples, match=r"20.png"):
            store.gather("cls", [20])
    np.testing.assert_array_equal(store.gather("cls", [82]), columns["fields/cls"][[82]])


def test_copies_outlive_the_store(tmp_path: Path) -> None:
    """The range is given back with its store; what gather returned and pickled stores stay good."""
    path, columns = page_store(tmp_path / "s")
    store = FeatureStore.open(path)
    rows = store.gather("cls", [5, 70])
    again = pickle.loads(pickle.dumps(store))
    del store
    gc.collect()
    np.testing.assert_array_equal(rows, columns["fields/cls"][[5, 70]])
    np.testing.assert_array_equal(again.gather("cls", [5]), columns["fields/cls"][[5]])


def test_the_range_costs_address_space_only(tmp_path: Path) -> None:
    """A terabyte is reserved at once; a file is read at its own place."""
    payload = 256 * PAGE_BYTES
    whole = SideBySide(2**40 // payload, payload)
    file = tmp_path / "payload"
    file.write_bytes(b"\1" * PAGE_BYTES + b"index")
    last = 2**40 // payload - 1
    with file.open("rb") as opened:
        whole.attach(last, opened.fileno(), PAGE_BYTES)
    start = last * payload
    assert whole.bytes()[start : start + PAGE_BYTES].tolist() == [1] * PAGE_BYTES
    with pytest.raises(ValueError, match="read-only"):
        whole.bytes()[start] = 0

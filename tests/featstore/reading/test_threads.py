"""Threads that share one open store read the right rows, whatever kind of field they read."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.containers import zarr_columns
from featstore.format.manifest_records import Container
from featstore.places.base import Retry
from featstore.reading import stored_rows
from featstore.reading.cached.cache import CacheConfig
from featstore.writing.commit import finish
from tests.featstore.backend_tests import Rows, every_kind, heavy_tailed, read, spec, values_of
from tests.featstore.processes import fork, wait

THREADS = 8
NUM_ROWS = 96
BATCHES = 4


def busy_rows() -> Rows:
    """A field of each kind, compressed ones among them; rows of whole pages are mapped side by side."""
    rows = every_kind(rows=NUM_ROWS, views=1, invalid={5: "made so"})
    kept = ("float162", "bfloat163", "int8-row", "int8-channel_row", "logits", "points", "caption")
    rows.fields = {name: rows.fields[name] for name in kept}
    rows.values = {name: rows.values[name] for name in kept}
    for name, codec in (("zstd", "zstd"), ("bitshuffle", "bitshuffle")):
        rows.fields[name] = spec("float16", (8, 32), codec=codec)
        rows.values[name] = heavy_tailed(NUM_ROWS, 1, 8, 32, seed=len(name)).astype(np.float16)
    rows.fields["pages"] = spec("float32", (1024,))
    rows.values["pages"] = values_of("float32", NUM_ROWS, 1, 1024)
    rows.shard_rows = 8
    return rows


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Rows]:
    """A store in each container, with what was written into it."""
    container: Container = request.param
    rows = busy_rows()
    if container == "webdataset":
        for name in ("zstd", "bitshuffle"):
            del rows.fields[name], rows.values[name]
    path = rows.write(tmp_path_factory.mktemp(container) / "store", container)
    finish(path, NUM_ROWS // rows.shard_rows)
    return path, rows


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches that hold less than the threads need at a time, and threads that are exchanged all the time."""
    monkeypatch.setattr(zarr_columns, "CACHE_BYTES", 3 * 8 * 512)
    monkeypatch.setattr(stored_rows, "HELD_BYTES", 4096)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def read_in_threads(store: FeatureStore, rows: Rows) -> None:
    """Let threads read random rows of every field, each in an order of its own; raises what the first one raised."""
    usable = np.flatnonzero(np.arange(NUM_ROWS) != 5)
    failures: list[BaseException] = []
    begin = threading.Barrier(THREADS)

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            begin.wait(60)
            for _ in range(BATCHES):
                wanted = generator.choice(usable, 12).tolist()
                for name in generator.permutation(sorted(rows.fields)).tolist():
                    if failures:
                        return
                    part = Rows({name: rows.fields[name]}, {name: rows.values[name]})
                    part.check(store, wanted)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.usefixtures("crowded")
@pytest.mark.slow
def test_every_kind_of_field_in_many_threads(written: tuple[Path, Rows]) -> None:
    """Eight threads on a store whose caches are too small for them; then one thread alone finds all rows right."""
    path, rows = written
    store = FeatureStore.open(path)
    read_in_threads(store, rows)
    rows.check(store, [row for row in range(NUM_ROWS) if row != 5])


@pytest.mark.usefixtures("crowded")
@pytest.mark.slow
def test_a_store_at_a_url_in_many_threads(written: tuple[Path, Rows], tmp_path: Path) -> None:
    """The same where objects are evicted from the cache while others are read."""
    path, rows = written
    folder = path / ("shards" if (path / "shards").exists() else "fields")
    largest = max(item.stat().st_size for item in folder.rglob("*") if item.is_file())
    cache = CacheConfig(
        folder=tmp_path / "cache", most_bytes=16 * largest, retry=Retry(attempts=2, first_s=0.001)
    )
    read_in_threads(FeatureStore.open(path.as_uri(), cache=cache), rows)


@pytest.mark.parametrize("codec", ["zstd", "bitshuffle"])
@pytest.mark.usefixtures("crowded")
def test_compressed_rows_in_many_threads(codec: Any, tmp_path: Path) -> None:
    """The batches of eight threads need more chunks than are kept; none sees the rows of another."""
    values = heavy_tailed(NUM_ROWS, 1, 64).astype(np.float16)
    rows = Rows({"z": spec("float16", (64,), codec=codec)}, {"z": values}, views=1, shard_rows=4)
    store = FeatureStore.open(rows.write(tmp_path / "store", "zarr"), allow_incomplete=True)
    read_in_threads(store, rows)
    np.testing.assert_array_equal(store.gather("z", np.arange(NUM_ROWS)), values)


@pytest.mark.slow
def test_a_fork_while_a_thread_reads(tmp_path: Path) -> None:
    """A child of a process with reading threads neither waits for a lock nor inherits half a cache."""
    values = heavy_tailed(NUM_ROWS, 1, 64).astype(np.float16)
    fields = {"z": spec("float16", (64,), codec="zstd")}
    rows = Rows(fields, {"z": values}, views=1, shard_rows=4)
    store = FeatureStore.open(rows.write(tmp_path / "store", "zarr"), allow_incomplete=True)
    stop = threading.Event()

    def keep_reading(seed: int) -> None:
        generator = np.random.default_rng(seed)
        while not stop.is_set():
            read(store, "z", generator.integers(0, NUM_ROWS, 12).tolist())

    threads = [threading.Thread(target=keep_reading, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            child = fork(lambda: _read_all(store, values))
            assert wait(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _read_all(store: FeatureStore, values: Any) -> None:
    for start in range(0, NUM_ROWS, 8):
        found = store.gather("z", np.arange(start, start + 8))
        np.testing.assert_array_equal(found, values[start : start + 8])

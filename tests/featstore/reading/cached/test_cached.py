"""A store at a URL reads as a local one does, whatever the cache, the server and other processes do meanwhile."""

import functools
import http.server
import json
import os
import pickle
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from featstore import FeatureStore
from featstore.cli import inspect
from featstore.cli.main import main
from featstore.errors import (
    ConfigError,
    MissingSamples,
    RemoteError,
    ShardCorrupt,
    StoreError,
    StoreIncomplete,
    StoreNotFound,
    StoreWriteError,
)
from featstore.format.ledger import entry_path, mark_complete, read_entry
from featstore.format.manifest import Manifest
from featstore.places.base import Retry
from featstore.places.local import LocalPlace
from featstore.reading.cached import mirror
from featstore.reading.cached import open_url as versions
from featstore.reading.cached.cache import Cache, CacheConfig
from featstore.reading.cached.shards import CachedShards
from featstore.reading.paired_tars import PairStream
from tests.featstore import golden
from tests.featstore.processes import die_at, fork, wait
from tests.featstore.reading import test_paired_tars
from tests.featstore.stores import field, make_columns, make_manifest, write_store

QUICK = Retry(attempts=2, first_s=0.001, most_s=0.001, timeout_s=5)
ROWS, SHARD = 96, 8
SHARDS = ROWS // SHARD
FIELDS = {"cls": field(512), "small": field(3, dtype="float32"), "z": field(64, codec="zstd")}

ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
"""Of os.waitid: whether a child has ended, without taking note of it."""

Change = Callable[[str, bytes], bytes]


class Far(LocalPlace):
    """A folder that counts what is asked of it, and may change what it sends."""

    asked: ClassVar[Counter[str]] = Counter()
    changes: ClassVar[list[Change]] = []

    def _pieces(
        self, name: str, start: int, stop: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        self.asked[name] += 1
        for at, piece in super()._pieces(name, start, stop):
            for change in self.changes:
                piece = change(name, piece)
            yield at, piece

    @classmethod
    def objects(cls) -> list[str]:
        """Names of the objects that were asked for."""
        return [name for name in cls.asked.elements() if "/c/" in name]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Far]]:
    """What mirrors reach for at file:// URLs."""

    def make(url: str, *, retry: Retry) -> LocalPlace:
        return Far(Path(url.removeprefix("file://")), url, retry)

    for module in (mirror, versions):
        monkeypatch.setattr(module, "open_place", make)
    yield Far
    Far.asked.clear()
    Far.changes.clear()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, dict[str, Any]]:
    """A store of random rows, one of them invalid."""
    folder = tmp_path_factory.mktemp("far") / "store"
    manifest = make_manifest(num_rows=ROWS, shard_rows=SHARD, fields=FIELDS)
    columns = make_columns(manifest, invalid=[5])
    return write_store(folder, manifest, columns, reasons={5: "made so"}), manifest, columns


@pytest.fixture
def store(written: tuple[Path, Manifest, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(written[0], tmp_path / "store"))


def config(folder: Path, most_bytes: int = 10**9, **options: Any) -> CacheConfig:
    """A cache in a folder of the test."""
    return CacheConfig(folder=folder / "cache", most_bytes=most_bytes, retry=QUICK, **options)


def object_bytes(store: Path, name: str = "cls") -> int:
    """Bytes of one full object of a field."""
    return read_entry(store, 0).objects[f"fields/{name}/c/0/0/0"].bytes


def held(folder: Path) -> int:
    """Bytes of all objects in a cache, complete or not."""
    return sum(
        path.stat().st_size
        for path in (folder / "cache").rglob("*")
        if path.is_file() and ("/c/" in str(path) or "/arriving/" in str(path))
    )


def same_rows(found: FeatureStore, columns: dict[str, Any], seed: int = 0) -> None:
    """Compare random batches of every field."""
    generator = np.random.default_rng(seed)
    usable = np.flatnonzero(columns["valid"])
    for _ in range(4):
        rows = generator.choice(usable, 24)
        for name in FIELDS:
            np.testing.assert_array_equal(found.gather(name, rows), columns[f"fields/{name}"][rows])


def serve(folder: Path) -> http.server.ThreadingHTTPServer:
    """A web server on loopback that knows no ranges and has no listing that we would read."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_every_kind_of_field_reads_as_from_the_folder(container: str, tmp_path: Path) -> None:
    """All encodings, small columns, artefacts, invalid rows and errors of both containers, over a web server."""
    local = FeatureStore.open(golden.FOLDER / f"store_v1_{container}")
    server = serve(local.path)
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        store = FeatureStore.open(url, cache=config(tmp_path))
        assert store.address == url
        assert store.remote
        assert store.fingerprint == local.fingerprint
        rows = np.flatnonzero(store.valid)[::-1]
        for name, spec in store.manifest.fields.items():
            kind = {"topk": "gather_topk", "ragged": "gather_ragged"}.get(
                spec.encoding.kind, "gather"
            )
            found, expected = (getattr(one, kind)(name, rows) for one in (store, local))
            if kind == "gather":
                found, expected = (found,), (expected,)
            for part, whole in zip(found, expected, strict=True):
                np.testing.assert_array_equal(part, whole)
        assert store.sample_ids == local.sample_ids
        assert store.labels.tolist() == local.labels.tolist()
        assert store.content_sha256.tolist() == local.content_sha256.tolist()
        assert store.invalid_rows() == local.invalid_rows()
        for name in store.manifest.artefacts:
            for key, values in local.artefact(name).items():
                np.testing.assert_array_equal(store.artefact(name)[key], values)
        with pytest.raises(MissingSamples, match=url):
            store.gather(next(iter(store.manifest.fields)), [golden.INVALID])
        summary = inspect.inspect_values(store, counts=True)
        assert summary == {**inspect.inspect_values(local, counts=True), "path": url}
        # Forked loader processes connect anew.
        child = fork(lambda: FeatureStore.open(url, cache=config(tmp_path / "other")).valid)
        assert wait(child) == 0
    finally:
        server.shutdown()
        server.server_close()


def test_only_what_is_touched_is_fetched_and_only_once(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """The first row costs its shard; the second reading and the second opening cost nothing."""
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    assert far.objects() == []
    opened.gather("cls", [SHARD + 1])
    assert sorted(far.objects()) == ["fields/cls/c/1/0/0", "valid/c/1"]
    same_rows(opened, written[2])
    whole = len(far.objects())
    assert max(far.asked[name] for name in far.objects()) == 1
    same_rows(FeatureStore.open(store.as_uri(), cache=config(tmp_path)), written[2])
    again = pickle.loads(pickle.dumps(opened))
    assert again.address == store.as_uri()
    same_rows(again, written[2])
    assert len(far.objects()) == whole
    # A write-protected file of the cache is no different; one that the disk has damaged comes again.
    path = opened.path / "fields/small/c/3/0/0"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    entry_path(opened.path, 4).write_bytes(b"{")
    same_rows(FeatureStore.open(store.as_uri(), cache=config(tmp_path)), written[2])
    assert far.asked["fields/small/c/3/0/0"] == 2


def test_a_damaged_arrival_is_fetched_again_then_named(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """A flipped byte on the way costs one more request; one that stays is an error with URL, shard, rows, column."""
    flips = Counter({"fields/cls/c/2/0/0": 1, "ledger/00000002.json": 1, "manifest.json": 1})

    def flip(name: str, piece: bytes) -> bytes:
        if flips[name] <= 0:
            return piece
        flips[name] -= 1
        return piece[:100] + bytes([piece[100] ^ 4]) + piece[101:]

    far.changes.append(flip)
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    same_rows(opened, written[2])
    assert far.asked["fields/cls/c/2/0/0"] == 2

    flips["fields/cls/c/1/0/0"] = 10**6
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path / "b"))
    opened.gather("cls", np.arange(16, 32))
    with pytest.raises(ShardCorrupt) as caught:
        opened.gather("cls", np.arange(8, 32))
    for part in (store.as_uri(), "c/1/0/0", "shard 1 (rows 8-15)", '"fields/cls"', "3 times"):
        assert part in str(caught.value)
    assert "extract" not in str(caught.value)
    assert not (opened.path / "fields/cls/c/1/0/0").exists()
    assert not list((tmp_path / "b/cache/arriving").iterdir())
    (store / "valid/c/7").unlink()
    with pytest.raises(RemoteError, match="valid/c/7"):
        assert opened.valid.any()


def test_the_limit_holds_and_the_oldest_go_first(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """Objects are evicted in the order of their last use, over all stores; what does not fit is said with its size."""
    size = object_bytes(store)
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path, 4 * size))
    for shard in (1, 2, 3):
        opened.gather("cls", [shard * SHARD])
    os.utime(opened.path / "fields/cls/c/1/0/0")  # used again, by another process
    other = Path(shutil.copytree(store, tmp_path / "other"))
    second = FeatureStore.open(other.as_uri(), cache=config(tmp_path, 4 * size))
    second.gather("cls", [0])
    left = {path.parent.parent.name for path in opened.path.glob("fields/cls/c/*/0/0")}
    assert left == {"1", "3"}
    assert held(tmp_path) <= 4 * size
    same_rows_of = np.arange(SHARD, 4 * SHARD)
    for _ in range(2):  # what was evicted comes back
        found = opened.gather("cls", same_rows_of)
        np.testing.assert_array_equal(found, written[2]["fields/cls"][same_rows_of])
        assert held(tmp_path) <= 4 * size
    with pytest.raises(ConfigError, match=f"FEATSTORE_CACHE_BYTES={5 * size}") as caught:
        opened.gather("cls", np.arange(SHARD, 6 * SHARD))
    assert store.as_uri() in str(caught.value)
    assert opened.sample_ids[5] == FeatureStore.open(store).sample_ids[5]


def test_evicted_rows_give_back_the_disk_and_come_back_right(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """A reader that has everything mapped keeps nobody from making room, and never sees an evicted object's zeros."""
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    same_rows(opened, written[2])
    handle = os.open(opened.path / "fields/cls/c/1/0/0", os.O_RDONLY)
    assert os.fstat(handle).st_blocks > 0
    cache = Cache(config(tmp_path, 1))
    with cache.alone():
        cache._make_room(0, 0, keep=())
    assert held(tmp_path) == 0
    assert os.fstat(handle).st_blocks == 0  # though it is still open, and mapped
    os.close(handle)
    same_rows(opened, written[2])
    # In the middle of a copy, too: the copy is made again.
    take = opened._stored._readers["fields/cls"].take
    evicted: list[Any] = []

    def evict_then_take(rows: Any, out: Any) -> None:
        if not evicted:
            with cache.alone():
                cache._make_room(0, 0, keep=())
        evicted.append(len(rows))
        take(rows, out)

    opened._stored._readers["fields/cls"].take = evict_then_take  # type: ignore[method-assign]
    same_rows(opened, written[2])
    assert len(evicted) > 4
    # Somebody deletes the whole cache.
    half = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    shutil.rmtree(tmp_path / "cache")
    same_rows(opened, written[2])
    same_rows(half, written[2])


def test_rows_are_not_refused_because_what_says_so_was_evicted(
    store: Path,
    far: type[Far],
    tmp_path: Path,
    written: tuple[Path, Manifest, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``valid`` is evicted while it is read for a batch: its zeros are no rows without a feature."""
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    cache = Cache(config(tmp_path, 1))
    read, count = opened.storage.backend.read_shard, 0

    def evict_then_read(shard: int, column: str, *given: Any) -> Any:
        nonlocal count
        count += 1
        found = read(shard, column, *given)
        if count == 1:
            with cache.alone():
                cache._make_room(0, 0, keep=())
            return np.zeros_like(found)
        return found

    monkeypatch.setattr(opened.storage.backend, "read_shard", evict_then_read)
    rows = np.arange(SHARD, 2 * SHARD)
    np.testing.assert_array_equal(opened.gather("cls", rows), written[2]["fields/cls"][rows])
    assert count > 1


@pytest.mark.slow
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_processes_and_threads_that_crowd_each_other_out_read_the_right_rows(
    container: str, tmp_path: Path
) -> None:
    """Three processes of two threads share a cache that holds little more than one batch: all rows right, no signal."""
    fields = {"cls": field(512)} if container == "webdataset" else FIELDS
    manifest = make_manifest(num_rows=ROWS, shard_rows=SHARD, fields=fields)
    manifest = manifest.model_copy(update={"container": container})
    columns = make_columns(manifest, invalid=[5])
    store = write_store(tmp_path / "store", manifest, columns, reasons={5: "made so"})
    largest = max(item.bytes for item in read_entry(store, 0).objects.values())
    settings = config(tmp_path, int(3.5 * largest))

    def read(opened: FeatureStore, seed: list[int], failures: list[BaseException]) -> None:
        generator = np.random.default_rng(seed)
        try:
            for _ in range(3):
                shards = generator.choice(np.arange(1, SHARDS), 3, replace=False)
                rows = generator.permutation((shards[:, None] * SHARD + np.arange(SHARD)).ravel())
                for name in fields:
                    found = opened.gather(name, rows)
                    np.testing.assert_array_equal(found, columns[f"fields/{name}"][rows])
        except BaseException as error:
            failures.append(error)

    def work(number: int) -> None:
        opened = FeatureStore.open(store.as_uri(), cache=settings)
        failures: list[BaseException] = []
        threads = [
            threading.Thread(target=read, args=(opened, [number, i], failures)) for i in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    children = [fork(functools.partial(work, number)) for number in range(3)]
    most = 0
    while any(os.waitid(os.P_PID, child, ENDED) is None for child in children):
        most = max(most, held_now(tmp_path))
        time.sleep(0.01)
    assert [wait(child) for child in children] == [0, 0, 0]
    assert 0 < most <= settings.most_bytes


def held_now(folder: Path) -> int:
    """As ``held``, while files come and go."""
    total = 0
    for here, _, files in os.walk(folder / "cache"):
        for name in files:
            if "/c/" in here or "/shards" in here or "/arriving/" in here:
                try:
                    total += os.stat(f"{here}/{name}").st_size  # noqa: PTH116
                except OSError:
                    continue
    return total


def test_one_process_fetches_and_the_others_wait(
    store: Path, far: type[Far], tmp_path: Path
) -> None:
    """Six processes that want the same objects at the same time ask the server for each of them once."""
    log = tmp_path / "log"

    def note(name: str, piece: bytes) -> bytes:
        with log.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(0.002)
        return piece

    far.changes.append(note)
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    children = [fork(lambda: opened.gather("cls", np.arange(8, ROWS))) for _ in range(6)]
    assert [wait(child) for child in children] == [0] * 6
    counts = Counter(line for line in log.read_text().splitlines() if "/c/" in line)
    assert len(counts) == 2 * (SHARDS - 1)
    assert set(counts.values()) == {1}


def test_a_killed_fetch_leaves_nothing_behind(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """Whoever comes after a process that was killed in the middle of a fetch gets the rows and the room."""
    size = object_bytes(store)
    settings = config(tmp_path, 11 * size)

    def work() -> None:
        opened = FeatureStore.open(store.as_uri(), cache=settings)
        die_at(mirror, "_first_damage", 9)
        opened.gather("cls", np.arange(SHARD, 9 * SHARD))

    assert wait(fork(work)) == -signal.SIGKILL
    assert list((tmp_path / "cache/arriving").iterdir())
    opened = FeatureStore.open(store.as_uri(), cache=settings)
    rows = np.arange(SHARD, 11 * SHARD)
    np.testing.assert_array_equal(opened.gather("cls", rows), written[2]["fields/cls"][rows])
    assert not list((tmp_path / "cache/arriving").iterdir())
    assert held(tmp_path) <= 11 * size


def test_a_store_that_is_replaced_is_noticed(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """What the cache holds of the version that was opened stays readable; rows of two versions are never mixed."""
    _, manifest, columns = written
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    opened.entries()
    rows = np.arange(5 * SHARD, 7 * SHARD)
    opened.gather("cls", rows)
    half = FeatureStore.open(store.as_uri(), cache=config(tmp_path / "half"))
    other = make_columns(manifest, seed=1)
    shutil.rmtree(store)
    newer = manifest.model_copy(update={"uuid": "another"})
    write_store(store, newer, {**other, "fields/cls": columns["fields/cls"]})
    np.testing.assert_array_equal(opened.gather("cls", rows), columns["fields/cls"][rows])
    for name in ("fields/small", "fields/z"):
        with pytest.raises(RemoteError) as caught:
            opened.gather(name.partition("/")[2], rows)
        assert "Open it again" in str(caught.value)
    with pytest.raises(RemoteError):
        half.gather("small", rows)  # its ledger would be the new one
    again = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    np.testing.assert_array_equal(again.gather("small", rows), other["fields/small"][rows])
    shutil.rmtree(store)
    with pytest.raises(RemoteError):
        again.gather("z", rows)


def test_a_store_of_other_shards_takes_its_place(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """Its ledger, objects and artefacts do not fit the manifest that was opened: replaced, not damaged."""
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    opened.gather("cls", [SHARD])
    manifest = make_manifest(num_rows=ROWS, shard_rows=SHARD // 2, fields={"cls": field(512)})
    shutil.rmtree(store)
    write_store(store, manifest, make_columns(manifest, seed=1))
    found = opened.gather("cls", [SHARD])
    np.testing.assert_array_equal(found, written[2]["fields/cls"][[SHARD]])
    for field_name in FIELDS:
        with pytest.raises(RemoteError, match="replaced"):
            opened.gather(field_name, [3 * SHARD])
    with pytest.raises(RemoteError, match="replaced"):
        opened.entries()


def test_an_eviction_while_a_batch_is_prepared(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """Rows that were ready when a batch began are evicted before they are copied: they are fetched again."""
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    cache = Cache(config(tmp_path, 1))
    for name in FIELDS:
        opened.gather(name, [SHARD])  # ready
        evicted: list[int] = []

        def evict_then_check(rows: Any, evicted: list[int] = evicted) -> None:
            if not evicted:
                evicted.append(len(rows))
                with cache.alone():
                    cache._make_room(0, 0, keep=())
            FeatureStore._check_usable(opened, rows)

        opened._check_usable = evict_then_check  # type: ignore[method-assign]
        rows = np.array([SHARD, 2 * SHARD])
        np.testing.assert_array_equal(opened.gather(name, rows), written[2][f"fields/{name}"][rows])


@pytest.mark.parametrize("name", ["state", "arriving", "stores", "lock", "."])
def test_links_in_the_cache_are_refused(name: str, store: Path, tmp_path: Path) -> None:
    """Nothing behind a link is written or deleted, whatever part of the cache the link takes the place of."""
    target = tmp_path / "target"
    (target / "folder").mkdir(parents=True)
    (target / "folder/file").write_text("precious")
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * 64)
    cache = tmp_path / "cache"
    if name == ".":
        cache.symlink_to(target)
    else:
        cache.mkdir(mode=0o700)
        (cache / name).symlink_to(precious if name in ("state", "lock") else target)
    with pytest.raises(StoreWriteError, match=str(cache)):
        FeatureStore.open(store.as_uri(), cache=config(tmp_path)).gather("cls", [9])
    assert precious.read_bytes() == b"x" * 64
    assert [path.relative_to(target).as_posix() for path in target.rglob("*")] == [
        "folder",
        "folder/file",
    ]


def test_links_among_cached_objects(
    store: Path, far: type[Far], tmp_path: Path, written: tuple[Path, Manifest, dict[str, Any]]
) -> None:
    """A link in the place of an object, a folder or what is fetched just now is replaced or refused, never followed."""
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    same_rows(opened, written[2])
    precious = tmp_path / "precious"
    precious.write_bytes((opened.path / "fields/cls/c/2/0/0").read_bytes())
    expected, before = precious.read_bytes(), precious.stat().st_blocks
    victim = opened.path / "fields/cls/c/2/0/0"
    victim.unlink()
    victim.symlink_to(precious)
    away = tmp_path / "away"
    away.mkdir()
    (away / "file").write_text("precious")
    (tmp_path / "cache/arriving/other").symlink_to(away)
    same_rows(FeatureStore.open(store.as_uri(), cache=config(tmp_path)), written[2])
    cache = Cache(config(tmp_path, 1))
    victim.unlink(missing_ok=True)
    victim.symlink_to(precious)
    with cache.alone():
        cache._make_room(0, 0, keep=())
    assert precious.read_bytes() == expected
    assert precious.stat().st_blocks == before
    assert [path.name for path in away.iterdir()] == ["file"]
    shutil.rmtree(opened.path / "fields/small")
    (opened.path / "fields/small").symlink_to(away)
    with pytest.raises(StoreError):
        FeatureStore.open(store.as_uri(), cache=config(tmp_path)).gather("small", [9])
    assert [path.name for path in away.iterdir()] == ["file"]
    latest = opened.path.parent / "latest"
    latest.write_text("../../../away")
    with pytest.raises(StoreNotFound):
        FeatureStore.open(store.as_uri(), cache=config(tmp_path, offline=True))


def test_the_cache_is_private(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made for its user alone; a folder of another user, or one that others may write to, is refused."""
    settings = config(tmp_path)
    before = os.umask(0)
    try:
        FeatureStore.open(store.as_uri(), cache=settings).gather("cls", [9])
    finally:
        os.umask(before)
    stores = settings.folder / "stores"
    for folder in (settings.folder, settings.folder / "arriving", stores, *stores.iterdir()):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
    assert (settings.folder / "state").stat().st_mode & 0o777 == 0o600
    for mode in (0o777, 0o770, 0o1777):
        settings.folder.chmod(mode)
        with pytest.raises(StoreWriteError, match=f"{mode:o}"):
            FeatureStore.open(store.as_uri(), cache=settings)
    settings.folder.chmod(0o700)
    user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(StoreWriteError, match=f"{user}"):
        FeatureStore.open(store.as_uri(), cache=settings)


def test_a_ledger_of_mixed_versions_is_refused(store: Path, far: type[Far], tmp_path: Path) -> None:
    """An entry that was exchanged beside its manifest is found once the whole ledger was read."""
    entry = read_entry(store, 3)
    entry_path(store, 3).write_bytes(
        mirror_entry(entry.model_copy(update={"seconds": {"load": 9.0}}))
    )
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    with pytest.raises(ShardCorrupt):
        opened.entries()


def mirror_entry(record: Any) -> bytes:
    """An entry's file."""
    from featstore.format.ledger import entry_bytes

    return entry_bytes(record)


def test_offline_reads_what_is_cached_and_says_what_is_not(
    store: Path, far: type[Far], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence is no answer: without a server, only the explicit setting reads the cache."""
    url = store.as_uri()
    with pytest.raises(StoreNotFound):
        FeatureStore.open(url, cache=config(tmp_path, offline=True))
    expected = FeatureStore.open(url, cache=config(tmp_path)).gather("cls", [9])
    store.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreNotFound, match=url):
        FeatureStore.open(url, cache=config(tmp_path))
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEATSTORE_CACHE_BYTES", "1e9")
    monkeypatch.setenv("FEATSTORE_OFFLINE", "1")
    opened = FeatureStore.open(url)
    assert isinstance(opened.storage, CachedShards)
    assert opened.storage.mirror.cache.most_bytes == 10**9
    np.testing.assert_array_equal(opened.gather("cls", [9]), expected)
    with pytest.raises(RemoteError, match="FEATSTORE_OFFLINE"):
        opened.gather("small", [9])
    monkeypatch.setenv("FEATSTORE_CACHE_BYTES", "much")
    with pytest.raises(ConfigError, match="FEATSTORE_CACHE_BYTES"):
        FeatureStore.open(url)


def test_incomplete_stores(
    store: Path,
    far: type[Far],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are refused; on request, what is there is read, as by ``featstore inspect``."""
    (store / "ledger/complete.json").unlink()
    entry_path(store, 4).unlink()
    url = store.as_uri()
    with pytest.raises(StoreIncomplete):
        FeatureStore.open(url, cache=config(tmp_path))
    opened = FeatureStore.open(url, cache=config(tmp_path), allow_incomplete=True)
    assert opened.shards == [shard for shard in range(SHARDS) if shard != 4]
    assert opened.gather("cls", [9]).shape == (1, 2, 512)
    with pytest.raises(MissingSamples):
        opened.gather("cls", [4 * SHARD])
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    assert main(["inspect", url, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["path"], said["rows_done"]) == (url, ROWS - SHARD)
    assert main(["plan", url, "--rows", "8"]) == 0
    with pytest.raises(SystemExit):
        main(["card", url])
    assert f"featstore pull {url}" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreNotFound, match=r"manifest\.json"):
        FeatureStore.open((tmp_path / "empty").as_uri(), cache=config(tmp_path))


def test_shards_are_fetched_in_the_order_of_the_epoch(
    store: Path, far: type[Far], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shuffled by shards, the first batch fetches those that are mixed, and the next ones come beside it."""
    from featstore.reading import torch_data

    monkeypatch.setattr(torch_data, "MIXED_SHARDS", 2)
    monkeypatch.setattr(torch_data, "AHEAD_BATCHES", 1)
    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    expected = [
        batch["row"].tolist()
        for batch in FeatureStore.open(store).loader(["cls"], batch_size=SHARD, shuffle="shards")
    ]
    assert (
        sorted({row for rows in expected for row in rows}) == np.flatnonzero(opened.valid).tolist()
    )
    batches = iter(opened.loader(["cls"], batch_size=SHARD, shuffle="shards"))
    found = [next(batches)["row"].tolist()]

    def fetched() -> set[str]:
        return {name for name in far.objects() if name.startswith("fields/cls/")}

    assert isinstance(opened.storage, CachedShards)
    assert opened.storage._ahead is not None
    opened.storage._ahead.join(10)
    needed = {row // SHARD for rows in (expected[0], expected[2]) for row in rows}
    assert fetched() == {f"fields/cls/c/{shard}/0/0" for shard in needed}
    assert len(needed) < len(opened.shards)
    found += [batch["row"].tolist() for batch in batches]
    assert found == expected


def test_a_loader_fetches_ahead(store: Path, far: type[Far], tmp_path: Path) -> None:
    """While a batch is worked on, the objects of coming ones arrive; rows and order are those of a local store."""
    from featstore.reading.torch_data import FeatureDataset, FeatureLoader

    def loader(opened: FeatureStore, **options: Any) -> Any:
        return FeatureLoader(FeatureDataset(opened, ["cls"]), batch_size=SHARD, **options)

    opened = FeatureStore.open(store.as_uri(), cache=config(tmp_path))
    batches = iter(loader(opened, shuffle="none"))
    next(batches)
    assert isinstance(opened.storage, CachedShards)
    assert opened.storage._ahead is not None
    opened.storage._ahead.join(10)
    # Batch 4 (rows 33 to 40, as row 5 is invalid) was asked for beside batch 0.
    assert {"fields/cls/c/4/0/0", "fields/cls/c/5/0/0"} <= set(far.objects())
    assert "fields/cls/c/3/0/0" not in far.objects()
    for workers in (0, 1):
        pairs = zip(
            loader(opened, workers=workers, seed=3),
            loader(FeatureStore.open(store), seed=3),
            strict=True,
        )
        for found, expected in pairs:
            assert found["row"].tolist() == expected["row"].tolist()
            assert (found["cls"] == expected["cls"]).all()


def test_streams_of_tars_read_through_the_cache(tmp_path: Path) -> None:
    """Pairs of an image and its features, with the features at a URL."""
    images = test_paired_tars.write_images(tmp_path / "images", {"a": ["x", "y"], "b/c": ["z"]})
    test_paired_tars.write_features(tmp_path / "store", images)
    shards = range(FeatureStore.open(tmp_path / "store").manifest.num_shards)
    mark_complete(tmp_path / "store", [read_entry(tmp_path / "store", shard) for shard in shards])
    opened = FeatureStore.open((tmp_path / "store").as_uri(), cache=config(tmp_path))
    found = list(PairStream(opened, images))
    expected = list(PairStream(tmp_path / "store", images))
    assert [pair.sample_id for pair in found] == [pair.sample_id for pair in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.fields["cls"], other.fields["cls"])

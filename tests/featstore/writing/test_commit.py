"""Writing: who may write when, nothing half-made after a failed start, and disks that refuse."""

import errno
import os
import resource
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.errors import StoreBusy, StoreNotFound, StoreWriteError
from featstore.extraction.config import StoreConfig
from featstore.files import atomic, locks
from featstore.files.atomic import write_bytes
from featstore.files.locks import exclusive, shared
from featstore.format.fields import empty_columns
from featstore.writing.claims import Claims
from featstore.writing.commit import open_or_create
from featstore.writing.fill import FolderStore, fill
from featstore.writing.shard import Shard
from tests.featstore.formula import FormulaTeacher, describe, make_config, run
from tests.featstore.jobs import MANIFEST, check_committed, run_job
from tests.featstore.processes import fork, wait
from tests.featstore.stores import (
    field,
    leftovers,
    make_columns,
    make_manifest,
    snapshot,
    write_store,
)


@pytest.fixture(scope="module")
def straight(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of a store whose writing nothing disturbed."""
    path = tmp_path_factory.mktemp("straight") / "s"
    run(make_config(image_folder, path))
    return snapshot(path)


def test_whoever_needs_a_store_alone_is_told_who_writes(image_folder: Path, tmp_path: Path) -> None:
    """Writers share a store; to repair or delete it, it must be nobody's. Both learn who is in their way."""
    path = tmp_path / "s"
    open_or_create(path, make_manifest())
    before = snapshot(path)
    me = rf"process {os.getpid()} on {os.uname().nodename}"
    with (
        shared(path),
        shared(path),
        pytest.raises(StoreBusy, match=f"{me}"),
        exclusive(path),
    ):
        pass
    with (
        exclusive(path),
        pytest.raises(StoreBusy, match=f"{me}"),
        exclusive(path),
    ):
        pass
    assert snapshot(path) == before
    with exclusive(path):
        pass


def test_a_run_waits_a_little_and_then_says_for_whom(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store held alone for long is busy; one held for a moment, to clear leftovers, is waited for."""
    config = make_config(image_folder, tmp_path / "s")
    open_or_create(tmp_path / "s", describe(config))

    def briefly() -> None:
        with exclusive(tmp_path / "s"):
            (tmp_path / "held").touch()
            time.sleep(0.3)

    child = fork(briefly)
    while not (tmp_path / "held").exists():
        time.sleep(0.001)
    with shared(tmp_path / "s"):
        pass
    assert wait(child) == 0
    monkeypatch.setattr(locks, "JOIN_TIMEOUT_S", 0.05)
    with (
        exclusive(tmp_path / "s"),
        pytest.raises(StoreBusy, match=rf"{os.getpid()}"),
    ):
        run(config)
    assert run(config).written == 26


def test_somebody_stopped_while_publishing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its lock cannot be broken without risk; so it is waited for, and then named with what to do."""
    monkeypatch.setattr(locks, "PUBLISH_TIMEOUT_S", 0.05)
    path = tmp_path / "s"
    open_or_create(path, MANIFEST)
    with (
        locks.publishing(path),
        pytest.raises(StoreBusy, match=rf"{os.getpid()}"),
    ):
        run_job(path)
    assert run_job(path).rows == MANIFEST.num_rows
    assert not leftovers(path)


def test_a_dead_writer_holds_no_lock(image_folder: Path, tmp_path: Path) -> None:
    """The system frees the lock of a killed run; the lock file that stays behind stops nobody."""
    config = make_config(image_folder, tmp_path / "s")
    open_or_create(tmp_path / "t", make_manifest())

    def work() -> None:
        with exclusive(tmp_path / "t"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait(fork(work)) == -signal.SIGKILL
    assert (tmp_path / "t" / ".lock").exists()
    with exclusive(tmp_path / "t"):
        pass
    run(config)


@pytest.mark.parametrize("kind", ["file", "folder with a file"])
def test_foreign_places_are_not_written_to(image_folder: Path, tmp_path: Path, kind: str) -> None:
    """A path that holds something else is refused and stays as it was."""
    place = tmp_path / "s"
    if kind == "file":
        place.write_bytes(b"mine")
    else:
        place.mkdir()
        (place / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(StoreNotFound, match=rf"{place}.*(file|thesis\.tex)"):
        run(make_config(image_folder, place))
    held = place.read_bytes() if kind == "file" else (place / "thesis.tex").read_bytes()
    assert held == b"mine"
    assert list(tmp_path.iterdir()) == [place]


def test_an_empty_folder_or_a_link_to_one_is_taken(
    image_folder: Path, straight: dict[str, Any], tmp_path: Path
) -> None:
    """People make the folder, or link to a larger disk, beforehand."""
    (tmp_path / "s").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for name in ("s", "link"):
        run(make_config(image_folder, tmp_path / name))
        assert snapshot(tmp_path / name) == straight
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "manifest.json").exists()


def test_a_store_that_cannot_be_created_leaves_nothing(image_folder: Path, tmp_path: Path) -> None:
    """A file in the way of a parent folder: our sentence, nothing made; with the file away the command works."""
    (tmp_path / "in_the_way").write_bytes(b"")
    config = make_config(image_folder, tmp_path / "in_the_way" / "s")
    with pytest.raises(StoreWriteError, match=r"--store.path"):
        run(config)
    assert [path.name for path in tmp_path.iterdir()] == ["in_the_way"]
    (tmp_path / "in_the_way").unlink()
    assert run(config).written == 26


@pytest.mark.parametrize("call", range(0, 12, 2))
def test_a_disk_that_fills_up_during_creation_leaves_nothing(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: int
) -> None:
    """Whichever file of the metadata does not fit any more: no store, no leftovers, and then it works."""
    config = make_config(image_folder, tmp_path / "s")
    with monkeypatch.context() as patch:
        fail_after(patch, Path, "mkdir", call)
        with pytest.raises(StoreWriteError):
            run(config)
    assert not leftovers(tmp_path / "s")
    assert not list(tmp_path.iterdir())
    assert run(config).written == 26


def fail_after(patch: pytest.MonkeyPatch, module: Any, name: str, calls: int) -> None:
    """Let a function work so many times, then raise ENOSPC for good."""
    original: Callable[..., Any] = getattr(module, name)
    left = [calls]

    def failing(*arguments: Any, **options: Any) -> Any:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return original(*arguments, **options)

    patch.setattr(module, name, failing)


@pytest.mark.parametrize("calls", [0, 5, 20])
def test_a_disk_that_fills_up_keeps_what_is_committed(
    image_folder: Path,
    straight: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    calls: int,
) -> None:
    """ENOSPC of a write: one sentence with the path and the way on; committed shards are true; resume completes.

    tests/featstore/soak.py refuses every single call.
    """
    path = tmp_path / "s"
    config = make_config(image_folder, path)
    open_or_create(path, describe(config))
    with monkeypatch.context() as patch:
        fail_after(patch, atomic.os, "write", calls)  # type: ignore[attr-defined]
        with pytest.raises(StoreWriteError) as caught:
            run(config)
    assert "No space left on device" in str(caught.value)
    assert (
        "Everything committed before is kept; free some space, then run the same command again"
        in str(caught.value)
    )
    assert not list(path.rglob(".partial-*"))
    kept = FeatureStore.open(path, allow_incomplete=True)
    check_committed(path, straight)
    assert run(config).written == 26 - sum(len(kept.manifest.shard_range(s)) for s in kept.shards)
    assert snapshot(path) == straight


def test_a_limit_on_file_size(image_folder: Path, tmp_path: Path) -> None:
    """The system itself refuses a write in its middle (RLIMIT_FSIZE): the same promise as for a full disk.

    A shard of 16 rows x 2 views x (6 + 12) float32 numbers has objects of up to 1,536 bytes and text of 300; the
    limit lies between them.
    """
    settings: dict[str, Any] = {"fields": ["cls", "grid2"], "dtype": "float32", "shard_rows": 16}
    path, straight = tmp_path / "s", tmp_path / "straight"
    run(make_config(image_folder, straight, store=StoreConfig(path=str(straight), **settings)))
    config = make_config(image_folder, path, store=StoreConfig(path=str(path), **settings))
    open_or_create(path, describe(config))

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            run(config)
        except StoreWriteError as error:
            assert "File too large" in str(error), error
            assert "raise the limit on file size, or use smaller shards" in str(error), error
            os._exit(5)

    assert wait(fork(work)) == 5
    assert not leftovers(path)
    assert FeatureStore.open(path, allow_incomplete=True).shards == []
    run(config)
    assert snapshot(path) == snapshot(straight)


def test_a_store_that_became_read_only(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Going on where nothing can be written is StoreWriteError; a complete store needs nothing written."""
    config = make_config(image_folder, tmp_path / "s")
    begun = make_config(image_folder, tmp_path / "begun")
    run(config)
    open_or_create(tmp_path / "begun", describe(begun))
    original = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreWriteError):
        run(begun)
    assert run(config).written == 0


def test_a_complete_store_is_left_at_once(image_folder: Path, tmp_path: Path) -> None:
    """Nothing is claimed, locked, read or written but the mark, and what a killed run left behind goes."""
    config = make_config(image_folder, tmp_path / "s")
    run(config)
    before = snapshot(tmp_path / "s")
    (tmp_path / "s" / ".partial-00000000-abc").write_bytes(b"x")

    def never(*_: Any) -> None:
        pytest.fail("the teacher was run")

    assert run(config, FormulaTeacher("float16", never)).written == 0
    assert snapshot(tmp_path / "s") == before


@pytest.mark.parametrize("shards", [3, 12])
def test_memory_holds_two_shards(tmp_path: Path, shards: int) -> None:
    """One is written while the next one is made, and no third exists, however many there are."""
    rows, width = 256, 4096  # 2 MiB of float16
    manifest = make_manifest(
        num_rows=rows * shards, shard_rows=rows, views=1, fields={"x": field(width)}, labels=False
    )
    size = rows * width * 2
    path = tmp_path / "s"
    open_or_create(path, manifest)

    def make_shards(claims: Claims, first: int) -> Iterator[Shard]:
        for number in chain([first], iter(claims.claim_next, None)):
            columns = empty_columns(manifest, number)
            columns["fields/x"][:] = number
            yield Shard(number, columns, [None] * rows, {})
            del columns

    tracemalloc.start()
    try:
        fill(FolderStore(make_backend(path, manifest)), make_shards, lease_s=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * size + 2**20, f"{peak / size:.2f} shards"


def test_files_are_old_or_new(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A write that fails at any step leaves the old content, and no temporary file."""
    path = tmp_path / "a" / "file"
    assert write_bytes(path, b"old ", b"content") == 11
    for name in ("write", "fsync", "fchmod"):
        with monkeypatch.context() as patch:
            fail_after(patch, atomic.os, name, 0)  # type: ignore[attr-defined]
            with pytest.raises(StoreWriteError, match=r"\b3\b"):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old content"
        assert [item.name for item in path.parent.iterdir()] == ["file"]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_short_writes_are_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system may take fewer bytes than it was given (a signal, a limit of 2 GiB); the rest follows."""
    original = os.write
    monkeypatch.setattr(atomic.os, "write", lambda handle, data: original(handle, data[:3]))  # type: ignore[attr-defined]
    write_bytes(tmp_path / "file", b"0123456789", b"", b"abc")
    assert (tmp_path / "file").read_bytes() == b"0123456789abc"


def test_columns_must_be_those_of_the_store(tmp_path: Path) -> None:
    """A column left out or too many is a programming error, found before anything is written."""
    manifest = make_manifest()
    columns = make_columns(manifest)
    del columns["valid"]
    with pytest.raises(ValueError, match="valid"):
        write_store(tmp_path / "s", manifest, columns)
    assert FeatureStore.open(tmp_path / "s", allow_incomplete=True).shards == []
    assert not list((tmp_path / "s").rglob("c"))

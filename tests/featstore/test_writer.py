"""Writing: one writer at a time, nothing half-made after a failed start, and disks that refuse."""

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featstore import FeatureStore, atomic, writer
from featstore.atomic import write_bytes
from featstore.config import StoreConfig
from featstore.errors import StoreBusy, StoreNotFound, StoreWriteError
from featstore.writer import exclusive, open_or_create
from tests.featstore.formula import describe, make_config, run
from tests.featstore.processes import fork, wait
from tests.featstore.stores import (
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


def test_a_second_writer_is_told_who_writes(image_folder: Path, tmp_path: Path) -> None:
    """While one run holds the store another ends with StoreBusy and changes nothing; afterwards it may run."""
    config = make_config(image_folder, tmp_path / "s")
    open_or_create(tmp_path / "s", make_manifest())
    before = snapshot(tmp_path / "s")
    with (
        exclusive(tmp_path / "s"),
        pytest.raises(StoreBusy, match=rf"another run is writing here \(process {os.getpid()} on"),
        exclusive(tmp_path / "s"),
    ):
        pass
    assert snapshot(tmp_path / "s") == before
    with exclusive(tmp_path / "s"):
        pass
    run(make_config(image_folder, tmp_path / "t"))
    config = make_config(image_folder, tmp_path / "t")
    with exclusive(tmp_path / "t"), pytest.raises(StoreBusy, match="nothing is lost"):
        run(config)


def test_two_runs_at_once_make_one_good_store(
    image_folder: Path, straight: dict[str, Any], tmp_path: Path
) -> None:
    """Several runs that start together on nothing: one fills the store, the others are busy or find it done."""
    config = make_config(image_folder, tmp_path / "s")

    def work() -> None:
        try:
            run(config)
        except StoreBusy:
            os._exit(7)

    statuses = [wait(child) for child in [fork(work) for _ in range(4)]]
    assert set(statuses) <= {0, 7}
    assert 0 in statuses
    assert snapshot(tmp_path / "s") == straight
    run(config)
    assert not leftovers(tmp_path / "s")


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
    with pytest.raises(
        StoreNotFound, match=r"exists but is not a feature store .it holds: (a file|thesis.tex)"
    ):
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
    with pytest.raises(StoreWriteError, match=r"cannot be created: .* Choose another --store.path"):
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
        with pytest.raises(StoreWriteError, match=r"No space left on device"):
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


@pytest.mark.parametrize("calls", [0, 1, 5, 12, 20])
def test_a_disk_that_fills_up_keeps_what_is_committed(
    image_folder: Path,
    straight: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    calls: int,
) -> None:
    """ENOSPC of any write: one sentence with the path and the way on; committed shards are true; resume completes."""
    path = tmp_path / "s"
    config = make_config(image_folder, path)
    open_or_create(path, describe(config))
    with monkeypatch.context() as patch:
        fail_after(patch, atomic.os, "write", calls + 1)  # one write names the holder of the lock
        with pytest.raises(StoreWriteError) as caught:
            run(config)
    assert "No space left on device" in str(caught.value)
    assert (
        "Everything committed before is kept; free some space, then run the same command again"
        in str(caught.value)
    )
    assert not leftovers(path)
    kept = FeatureStore.open(path, allow_incomplete=True)
    for shard in kept.shards:
        for name in kept.entry(shard).objects:
            assert (path / name).read_bytes() == straight[name]
    assert run(config).written == 26 - sum(len(kept.manifest.shard_range(s)) for s in kept.shards)
    assert snapshot(path) == straight


def test_a_limit_on_file_size(image_folder: Path, tmp_path: Path) -> None:
    """The system itself refuses a write in its middle (RLIMIT_FSIZE): the same promise as for a full disk.

    A shard of 16 rows x 2 views x (6 + 12) float32 numbers has objects of up to 1,536 bytes and text of 300; the
    limit lies between them.
    """
    settings = {"fields": ["cls", "grid2"], "dtype": "float32", "shard_rows": 16}
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
    """Resuming where nothing can be written is StoreWriteError, not a traceback of the lock."""
    config = make_config(image_folder, tmp_path / "s")
    run(config)
    original = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, flags, *rest, **options)

    monkeypatch.setattr(writer.os, "open", refuse)
    with pytest.raises(StoreWriteError, match=r"cannot be written to: .*Read-only file system"):
        run(config)


def test_files_are_old_or_new(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A write that fails at any step leaves the old content, and no temporary file."""
    path = tmp_path / "a" / "file"
    assert write_bytes(path, b"old ", b"content") == 11
    for name in ("write", "fsync", "fchmod"):
        with monkeypatch.context() as patch:
            fail_after(patch, atomic.os, name, 0)
            with pytest.raises(
                StoreWriteError, match=r"file: writing 3 bytes failed: No space left"
            ):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old content"
        assert [item.name for item in path.parent.iterdir()] == ["file"]
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_short_writes_are_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system may take fewer bytes than it was given (a signal, a limit of 2 GiB); the rest follows."""
    original = os.write
    monkeypatch.setattr(atomic.os, "write", lambda handle, data: original(handle, data[:3]))
    write_bytes(tmp_path / "file", b"0123456789", b"", b"abc")
    assert (tmp_path / "file").read_bytes() == b"0123456789abc"


def test_columns_must_be_those_of_the_store(tmp_path: Path) -> None:
    """A column left out or too many is a programming error, found before anything is written."""
    manifest = make_manifest()
    columns = make_columns(manifest)
    del columns["valid"]
    with pytest.raises(ValueError, match="the store has"):
        write_store(tmp_path / "s", manifest, columns)
    assert FeatureStore.open(tmp_path / "s", allow_incomplete=True).shards == []
    assert not list((tmp_path / "s").rglob("c"))

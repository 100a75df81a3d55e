"""Leases: who works on what. They may be lost, taken and taken back at any time, and the store is true all the same."""

import errno
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from featstore.containers import make_backend
from featstore.format.ledger import committed_shards
from featstore.format.manifest import Manifest
from featstore.writing import commit as writer
from featstore.writing import leases
from featstore.writing.claims import Claims
from featstore.writing.commit import commit, open_or_create
from featstore.writing.fill import FolderStore, fill
from featstore.writing.leases import Leases, lease_path
from featstore.writing.shard import Shard
from tests.featstore.jobs import MANIFEST, note, run_job
from tests.featstore.processes import fork, wait
from tests.featstore.stores import leftovers, make_columns, snapshot


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty store."""
    open_or_create(tmp_path / "s", MANIFEST)
    return tmp_path / "s"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of a store that one job made."""
    path = tmp_path_factory.mktemp("straight") / "s"
    run_job(path)
    return snapshot(path)


def until(condition: Callable[[], object], limit_s: float = 20) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def hold(store: Path, shard: int, *, lease_s: float) -> int:
    """A child that has claimed a shard and keeps it until it is killed."""

    def work() -> None:
        with Leases(store, lease_s=lease_s) as mine:
            assert mine.claim(shard)
            time.sleep(60)

    child = fork(work)
    until(lambda: b"owner" in read(lease_path(store, shard)))
    return child


def read(path: Path) -> bytes:
    """A file's bytes; none if it is not there."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def end(child: int) -> None:
    """Kill a child, also a stopped one."""
    os.kill(child, signal.SIGKILL)
    wait(child)


def test_a_lease_has_one_holder(store: Path) -> None:
    """Claimed once, it is refused to others, in this process and in another, until it is given back."""
    with Leases(store, lease_s=60) as mine, Leases(store, lease_s=60) as theirs:
        assert mine.claim(3)
        assert not theirs.claim(3)
        assert theirs.claim(4)
        assert mine.holder(4) == f"process {os.getpid()} on {os.uname().nodename}"
        mine.release(3)
        assert mine.holder(3) == ""
        assert theirs.claim(3)
    assert list((store / "leases").iterdir()) == []


def test_a_dead_holder_is_replaced_at_once(store: Path) -> None:
    """kill -9 frees a lease at once on the same machine, however long it was meant to last."""
    child = hold(store, 0, lease_s=3600)
    with Leases(store, lease_s=3600) as mine:
        assert not mine.claim(0)
        end(child)
        assert mine.claim(0)


def test_a_stopped_holder_is_replaced_after_a_while(store: Path) -> None:
    """SIGSTOP: the lock stays, the count stands still; after lease_s the shard is somebody else's, and not before."""
    child = hold(store, 0, lease_s=0.5)
    try:
        with Leases(store, lease_s=0.5) as mine:
            assert not mine.claim(0)
            time.sleep(1.0)
            assert not mine.claim(0), "it counts, so it lives"
            os.kill(child, signal.SIGSTOP)
            stopped = time.monotonic()
            until(lambda: mine.claim(0))
            assert 0.35 < time.monotonic() - stopped < 5
            # It goes on, and counts in a file that is nobody's lease any more.
            os.kill(child, signal.SIGCONT)
            owner = json.loads(lease_path(store, 0).read_bytes())["owner"]
            time.sleep(0.3)
            assert json.loads(lease_path(store, 0).read_bytes())["owner"] == owner
    finally:
        end(child)


@pytest.mark.parametrize("jump_s", [-1e9, -61, 61, 1e9])
def test_a_clock_that_jumps_changes_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    """Wall clocks are not read: neither a living holder is replaced early, nor a dead one late; times of files, which
    another machine's clock may have set, do not count either.
    """
    child = hold(store, 0, lease_s=60)
    real, real_ns = time.time, time.time_ns
    try:
        with Leases(store, lease_s=60) as mine:
            assert not mine.claim(0)
            monkeypatch.setattr(time, "time", lambda: real() + jump_s)
            monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(jump_s * 1e9))
            os.utime(lease_path(store, 0), (1, max(1, real() + jump_s)))
            assert not mine.claim(0)
            end(child)
            assert mine.claim(0)
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            end(child)


def test_another_machines_lock_proves_nothing(store: Path) -> None:
    """A file system may not share locks: a free lock of another machine's lease counts only when its count stands."""
    path = lease_path(store, 0)
    path.parent.mkdir()
    values = {"host": "elsewhere", "boot": "other", "pid": 1, "owner": "x"}
    with Leases(store, lease_s=0.4) as mine:
        for beat in range(6):  # it lives for 0.6 s
            path.write_text(json.dumps({**values, "beat": beat}))
            assert not mine.claim(0)
            time.sleep(0.1)
        assert mine.holder(0) == "process 1 on elsewhere"
        until(lambda: mine.claim(0), limit_s=5)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"boot": 3}'])
def test_a_lease_that_says_nothing_ends(store: Path, content: bytes) -> None:
    """After a power cut a lease may be empty or garbage: it ends like that of a silent holder."""
    path = lease_path(store, 0)
    path.parent.mkdir()
    path.write_bytes(content)
    with Leases(store, lease_s=0.1) as mine:
        assert not mine.claim(0)
        assert mine.holder(0) == "process ? on ?"
        until(lambda: mine.claim(0), limit_s=5)


@pytest.mark.slow
def test_one_of_many_takes_over(store: Path, tmp_path: Path) -> None:
    """Whoever rushes at the lease of a dead holder: one of them gets it, every time."""
    for attempt in range(5):
        log, tries, ready = (tmp_path / f"{name}{attempt}" for name in ("log", "tries", "ready"))
        end(hold(store, attempt, lease_s=60))

        def rush(
            shard: int = attempt, log: Path = log, tries: Path = tries, ready: Path = ready
        ) -> None:
            with Leases(store, lease_s=60) as mine:
                note(ready, os.getpid())
                until(lambda: read(ready).count(b"\n") == 6)
                if mine.claim(shard):
                    note(log, os.getpid())
                note(tries, os.getpid())
                until(lambda: read(tries).count(b"\n") == 6)

        assert [wait(child) for child in [fork(rush) for _ in range(6)]] == [0] * 6
        assert len(log.read_text().split()) == 1


def test_without_hard_links(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems know none: leases work all the same, also when two want one."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(leases.os, "link", refuse)  # type: ignore[attr-defined]
    with Leases(store, lease_s=60) as mine, Leases(store, lease_s=60) as theirs:
        assert mine.claim(0)
        assert not theirs.claim(0)
        monkeypatch.setattr(Path, "exists", lambda _: False)  # both believe that it is free
        assert not theirs.claim(0)
        assert mine.holder(0)
    assert list((store / "leases").iterdir()) == []


def test_without_locks(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flock is not known, the count alone tells who lives."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(leases.fcntl, "flock", refuse)  # type: ignore[attr-defined]
    child = hold(store, 0, lease_s=0.3)
    with Leases(store, lease_s=0.3) as mine:
        for _ in range(8):
            assert not mine.claim(0)
            time.sleep(0.1)
        end(child)
        assert not mine.claim(0)
        monkeypatch.undo()  # to replace it, a lock is needed: without any, nothing could be published either
        until(lambda: mine.claim(0), limit_s=5)


def test_children_hold_no_leases(store: Path) -> None:
    """A loader process that outlives its killed parent does not keep the parent's leases."""

    def work() -> None:
        with Leases(store, lease_s=60) as mine:
            assert mine.claim(0)
            orphan = fork(lambda: time.sleep(3))
            note(store.parent / "orphan", orphan)
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait(fork(work)) == -signal.SIGKILL
    orphan = int((store.parent / "orphan").read_text())
    os.kill(orphan, 0)
    with Leases(store, lease_s=60) as mine:
        assert mine.claim(0)
    os.kill(orphan, signal.SIGKILL)


def shards_of(manifest: Manifest, claims: Claims, first: int, pause: Callable[[int], None]) -> Any:
    """Make shards of random rows; ``pause`` is called after a shard is claimed."""
    columns = make_columns(manifest)
    number: int | None = first
    while number is not None:
        pause(number)
        rows = manifest.shard_range(number)
        part = {name: column[rows.start : rows.stop] for name, column in columns.items()}
        yield Shard(number, part, [None] * len(rows), {})
        number = claims.claim_next()


def test_a_holder_that_comes_back_harms_nobody(
    store: Path, straight: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped with a shard in its hands, replaced, and continued after the other has committed: the other's shard
    stays, the one that comes back finishes without an error, and does not count it as its own.
    """

    def work() -> None:
        def pause(number: int) -> None:
            if number == 2:
                until(lambda: len(committed_shards(store, 10)) == 2)
                time.sleep(0.1)  # with its last shard published, and the lock for that given back
                os.kill(os.getpid(), signal.SIGSTOP)

        def make(claims: Claims, first: int) -> Iterator[Shard]:
            return shards_of(MANIFEST, claims, first, pause)

        filled = fill(FolderStore(make_backend(store, MANIFEST)), make, lease_s=0.4)
        note(tmp_path / "rows", filled.rows)

    child = fork(work)
    os.waitpid(child, os.WUNTRACED)
    filled = run_job(store, lease_s=0.4)
    assert filled.rows == MANIFEST.num_rows - 4
    files = {path: path.stat().st_ino for path in store.rglob("c/2")}
    assert files
    os.kill(child, signal.SIGCONT)
    assert wait(child) == 0
    assert (tmp_path / "rows").read_text() == "4\n"
    assert {path: path.stat().st_ino for path in files} == files
    run_job(store)
    assert snapshot(store) == straight
    assert not leftovers(store)


def test_the_first_one_to_publish_wins(store: Path) -> None:
    """Two have made one shard, and their bits differ, as on other hardware: what was committed first stays, whole."""
    first, second = make_columns(MANIFEST, seed=1), make_columns(MANIFEST, seed=2)
    backend = make_backend(store, MANIFEST)

    def shard(columns: dict[str, Any]) -> Shard:
        return Shard(0, {name: values[:2] for name, values in columns.items()}, [None] * 2, {})

    assert commit(backend, shard(first))
    before = snapshot(store)
    assert not commit(backend, shard(second))
    assert snapshot(store) == before
    assert not leftovers(store)


def test_nobody_works_twice(tmp_path: Path, straight: dict[str, Any]) -> None:
    """Four jobs that start together on nothing share the shards: each is made once, each job makes some."""
    log, path = tmp_path / "log", tmp_path / "s"
    columns = make_columns(MANIFEST)

    def work(start: float) -> None:
        filled = run_job(path, start=start, shard_s=0.2, log=log, columns=columns)
        os._exit(0 if filled.rows else 3)

    children = [fork(lambda i=i: work(i / 4)) for i in range(4)]  # type: ignore[misc]
    assert [wait(child) for child in children] == [0] * 4
    made = Counter(log.read_text().split())
    assert len(made) == MANIFEST.num_shards
    assert sum(made.values()) == MANIFEST.num_shards
    assert snapshot(path) == straight
    assert not leftovers(path)


def test_a_slow_job_holds_nobody_up(tmp_path: Path, straight: dict[str, Any]) -> None:
    """The fast one of two does most of the work."""
    log, path = tmp_path / "log", tmp_path / "s"
    open_or_create(path, MANIFEST)
    slow = fork(lambda: run_job(path, shard_s=0.4))
    until(lambda: (path / "leases").is_dir())
    start = time.monotonic()
    run_job(path, start=0.5, shard_s=0.01, log=log)
    assert time.monotonic() - start < 3
    assert len(log.read_text().split()) >= MANIFEST.num_shards - 3
    assert wait(slow) == 0
    assert snapshot(path) == straight


def test_one_that_fails_leaves_its_work_to_others(store: Path, straight: dict[str, Any]) -> None:
    """An error in one process gives back its leases at once; another one, that waits for them, goes on."""

    def fail() -> None:
        def pause(number: int) -> None:
            if number == 1:
                time.sleep(0.5)
                raise RuntimeError("a broken graphics card")

        def make(claims: Claims, first: int) -> Iterator[Shard]:
            return shards_of(MANIFEST, claims, first, pause)

        with suppress(RuntimeError):
            fill(FolderStore(make_backend(store, MANIFEST)), make, lease_s=3600)
        os._exit(7)

    child = fork(fail)
    until(lambda: lease_path(store, 1).exists())
    run_job(store, lease_s=3600)
    assert wait(child) == 7
    assert snapshot(store) == straight


def test_many_ways_through_the_shards(store: Path) -> None:
    """Wherever a process begins, it walks past every pending shard once, in order, and skips what is there."""
    run_some = {2, 3, 7}
    columns = make_columns(MANIFEST)
    for number in run_some:
        rows = MANIFEST.shard_range(number)
        part = {name: values[rows.start : rows.stop] for name, values in columns.items()}
        commit(make_backend(store, MANIFEST), Shard(number, part, [None] * len(rows), {}))
    assert list(committed_shards(store, 10)) == [2, 3, 7]
    for start, first in ((0.0, 0), (0.3, 4), (0.5, 5), (0.99, 9)):
        with Leases(store, lease_s=60) as mine:
            claims = Claims(FolderStore(make_backend(store, MANIFEST)), mine, start=start)
            order = list(iter(claims.claim_next, None))
        assert order[0] == first
        assert sorted(order) == [0, 1, 4, 5, 6, 8, 9]
        assert order == order[order.index(min(order)) :] or order[-1] < order[0]


def test_a_shard_committed_between_two_looks(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody commits a shard after we saw it missing and before we hold its lease: it is not made again."""
    columns = make_columns(MANIFEST)
    original = Leases.claim

    def claim(self: Leases, shard: int) -> bool:
        if shard == 0:
            part = {name: values[:2] for name, values in columns.items()}
            commit(make_backend(store, MANIFEST), Shard(0, part, [None] * 2, {}))
        return original(self, shard)

    monkeypatch.setattr(Leases, "claim", claim)
    with Leases(store, lease_s=60) as mine:
        claims = Claims(FolderStore(make_backend(store, MANIFEST)), mine, start=0)
        assert claims.claim_next() == 1
        assert mine.held == [1]


def test_finish_is_done_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of a complete store is written by one of those who find that nothing is left."""
    run_job(store)
    monkeypatch.setattr(writer, "mark_complete", lambda *_: pytest.fail("it is marked already"))
    writer.finish(store, MANIFEST.num_shards)

"""Leases: which process works on which shard, so that shards are not computed twice.

Leases only save work. A shard exists when its ledger entry exists, and the first process that publishes it wins; a lost
lease costs time, not correctness.

A lease is a small file that its holder keeps locked and writes a growing count into. It is stale

- at once, if the lock is free and the file was written on this machine since the machine was started: the holder ended;
- after ``lease_s`` seconds without a change of the count. They are measured with the monotonic clock of the observing
  process, so wall clocks may jump and may differ between machines.
"""

import fcntl
import json
import os
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featstore.files.atomic import TEMPORARY_PREFIX, refused
from featstore.files.locks import FileLock, close, keep_from_children

LEASE_FOLDER = "leases"

_BOOT_PATH = Path("/proc/sys/kernel/random/boot_id")


def lease_path(store: Path, shard: int) -> Path:
    """Path of the lease of a shard, whether or not it exists."""
    return store / LEASE_FOLDER / f"{shard:08d}.json"


@dataclass
class _Held:
    path: Path
    handle: int
    beat: int = 0


@dataclass(frozen=True)
class _Seen:
    """Content of another process's lease, and since when it is unchanged."""

    inode: int
    content: bytes
    since_s: float


class Leases:
    """The leases of this process, and what it has observed of other leases. Use as a context manager.

    Args:
        lease_s: Seconds without a change after which another process's lease is stale.
    """

    def __init__(self, store: Path, *, lease_s: float) -> None:
        self._store = store
        self._lease_s = lease_s
        self._owner = secrets.token_hex(8)
        self._boot = boot_id()
        self._held: dict[int, _Held] = {}
        self._seen: dict[int, _Seen] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="featstore-leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        for shard in list(self._held):
            self.release(shard)

    @property
    def held(self) -> list[int]:
        """Shards whose leases this process holds; one may have been taken over meanwhile."""
        return list(self._held)

    def claim(self, shard: int) -> bool:
        """Take the lease of a shard if there is none, or a stale one."""
        assert shard not in self._held, shard
        path = lease_path(self._store, shard)
        with refused(path, 0):
            if not path.exists() and self._create(shard, path):
                return True
            return self._is_stale(shard, path) and self._take_over(shard, path)

    def release(self, shard: int) -> None:
        """Delete a lease of this process, unless another process has taken it over."""
        with self._lock:
            held = self._held.pop(shard)
        with suppress(OSError):
            if os.path.samestat(os.fstat(held.handle), held.path.stat()):
                held.path.unlink()
        self._drop(held)

    def forget(self, shard: int) -> None:
        """Drop what was observed of the lease of a committed shard."""
        self._seen.pop(shard, None)

    def holder(self, shard: int) -> str:
        """Name of the process that holds a lease; "" if there is none."""
        try:
            found = _read(lease_path(self._store, shard))
        except OSError:
            return ""
        return f"process {found.get('pid', '?')} on {found.get('host', '?')}"

    def _create(self, shard: int, path: Path) -> bool:
        """Create a lease, locked and filled before it is visible; False if there is one already."""
        path.parent.mkdir(exist_ok=True)
        held = self._prepare(path)
        temporary = self._temporary(path)
        try:
            os.link(temporary, path)
        except FileExistsError:
            self._drop(held)
            return False
        except OSError:
            if not self._create_without_link(held, path):
                return False
        finally:
            temporary.unlink(missing_ok=True)
        self._keep(shard, held)
        return True

    def _create_without_link(self, held: _Held, path: Path) -> bool:
        """Create a lease on a file system without hard links; it is empty for a moment."""
        self._drop(held)
        try:
            held.handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        keep_from_children(held.handle)
        self._fill(held)
        return True

    def _take_over(self, shard: int, path: Path) -> bool:
        """Replace a stale lease by one of this process; one process at a time."""
        lock = FileLock(path.parent / ".takeover")
        if not lock.acquire(shared=False, timeout_s=0):
            return False
        try:
            if not self._is_stale(shard, path):
                return False
            held = self._prepare(path)
            try:
                self._temporary(path).replace(path)
            except BaseException:
                self._drop(held)
                self._temporary(path).unlink(missing_ok=True)
                raise
        finally:
            lock.release()
        self._keep(shard, held)
        return True

    def _is_stale(self, shard: int, path: Path) -> bool:
        """Whether a lease is stale; remembers its content."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._seen.pop(shard, None)
            return False  # deleted just now: the next attempt claims it
        keep_from_children(handle)
        try:
            inode, content = os.fstat(handle).st_ino, os.pread(handle, 4096, 0)
            free = _is_free(handle)
        finally:
            close(handle)
        # A lock of another machine is not visible on some file systems.
        if free and _parse(content).get("boot") == self._boot:
            return True
        now = time.monotonic()
        seen = self._seen.get(shard)
        if seen is None or (seen.inode, seen.content) != (inode, content):
            self._seen[shard] = _Seen(inode, content, now)
            return False
        return now - seen.since_s >= self._lease_s

    def _temporary(self, path: Path) -> Path:
        return path.with_name(f"{TEMPORARY_PREFIX}{path.stem}-{self._owner}")

    def _prepare(self, path: Path) -> _Held:
        """Create a lease under a temporary name, filled and locked."""
        temporary = self._temporary(path)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
        keep_from_children(handle)
        held = _Held(path, handle)
        try:
            self._fill(held)
        except BaseException:
            self._drop(held)
            temporary.unlink(missing_ok=True)
            raise
        return held

    def _fill(self, held: _Held) -> None:
        with suppress(OSError):  # without locks, only the count shows that this process runs
            fcntl.flock(held.handle, fcntl.LOCK_EX)
        os.pwrite(held.handle, self._content(held), 0)

    def _content(self, held: _Held) -> bytes:
        # The count comes last and only grows, so a later text is never shorter.
        values = {
            "host": os.uname().nodename,
            "boot": self._boot,
            "pid": os.getpid(),
            "owner": self._owner,
            "beat": held.beat,
        }
        return (json.dumps(values) + "\n").encode()

    def _keep(self, shard: int, held: _Held) -> None:
        self._seen.pop(shard, None)
        with self._lock:
            self._held[shard] = held

    def _drop(self, held: _Held) -> None:
        with suppress(OSError):
            fcntl.flock(held.handle, fcntl.LOCK_UN)
        close(held.handle)

    def _beat(self) -> None:
        while not self._stop.wait(self._lease_s / 5):
            with self._lock:
                copies = []
                for held in self._held.values():
                    held.beat += 1
                    copies.append((os.dup(held.handle), self._content(held)))
                    keep_from_children(copies[-1][0])
            # Outside of the lock, because a sync may be slow; other machines see the count only after it.
            for copy, content in copies:
                with suppress(OSError):
                    os.pwrite(copy, content, 0)
                    os.fsync(copy)
                close(copy)


def boot_id() -> str:
    """Identifier of this boot of this machine; containers on one machine share it."""
    try:
        return _BOOT_PATH.read_text().strip()
    except OSError:
        return os.uname().nodename


def _is_free(handle: int) -> bool:
    """Whether an open lease is unlocked; False where the file system has no locks."""
    try:
        # Shared, so that observers do not take each other for holders.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(path: Path) -> dict[str, object]:
    return _parse(path.read_bytes())


def _parse(content: bytes) -> dict[str, object]:
    with suppress(ValueError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    return {}  # empty after a power cut, or caught in the middle of a write

"""Locks on files: the system frees them when the process that holds them ends, however it ends.

No lock is ever stale, and no clock is asked. The file system has to know ``flock``. Local ones do; those that several
machines share do if they are mounted so that they share locks (NFS 4, Lustre with ``-o flock``, GPFS, CephFS).
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from featstore.errors import StoreBusy, StoreWriteError, shorten

LOCK_NAME = ".lock"
"""Held shared by writers of a store, and exclusively to change what is committed."""

PUBLISH_NAME = ".publish"  # held alone for the few renames that make a shard exist

JOIN_TIMEOUT_S = 30.0
"""How long a writer waits for an exclusive lock; to clear leftovers takes milliseconds."""

PUBLISH_TIMEOUT_S = 300.0
"""How long a shard waits for its turn to be published; a turn takes milliseconds, or a second on a busy disk."""

_handles: set[int] = set()


def keep_from_children(handle: int) -> None:
    """Close a file in every child that this process forks, so that its locks end with this process.

    A forked child shares its parent's locks: a loader process that outlives a killed run by seconds would hold them.
    """
    _handles.add(handle)


def close(handle: int) -> None:
    """Close a file that was registered by ``keep_from_children``."""
    _handles.discard(handle)
    os.close(handle)


def _close_in_child() -> None:
    for handle in _handles:
        with suppress(OSError):
            os.close(handle)
    _handles.clear()


os.register_at_fork(after_in_child=_close_in_child)


class FileLock:
    """A lock on one file, which says inside who holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1
        self._owner = 0

    def acquire(self, *, shared: bool, timeout_s: float) -> bool:
        """Lock the file; False if another process held it all the time.

        Raises:
            StoreWriteError: the file cannot be written, or its file system has no locks.
        """
        start, pause = time.monotonic(), 0.001
        while (held := self._try(shared)) is False and time.monotonic() - start < timeout_s:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return held

    def release(self) -> None:
        """Unlock the file; a forked child that inherited this object does nothing."""
        if self._handle >= 0 and self._owner == os.getpid():
            with suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            close(self._handle)
        self._handle = -1

    def holders(self) -> str:
        """Names of the processes that hold the file, as far as they are known."""
        with suppress(OSError):
            names = dict.fromkeys(self.path.read_text(errors="replace").split("\n"))
            return ", ".join(name for name in names if name and not _is_dead(name)) or "unknown"
        return "unknown"

    def _try(self, shared: bool) -> bool:
        try:
            # A store may come from anybody: a link here would have us write to what it leads to.
            how = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(self.path, how, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise StoreWriteError(f"{self.path}: a link; remove it, then try again.") from None
            raise StoreWriteError(
                f"{self.path.parent}: cannot be written to: {error}. Make it writable, or choose another --store.path."
            ) from error
        keep_from_children(handle)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except OSError as error:
            close(handle)
            raise StoreWriteError(
                f"{self.path}: cannot be locked by flock: {error.strerror}. Check the disk, or put the store on a file "
                "system that knows flock (local disks; NFS 4; Lustre mounted with -o flock)."
            ) from error
        if not held or not self._is_named(handle):  # or: the store was deleted, and made again
            close(handle)
            return False
        self._handle, self._owner = handle, os.getpid()
        self._sign(shared)
        return True

    def _is_named(self, handle: int) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(handle), self.path.stat())
        return False

    def _sign(self, shared: bool) -> None:
        # For messages of other processes only, so errors do not matter.
        with suppress(OSError):
            if not shared:
                os.ftruncate(self._handle, 0)
            name = f"process {os.getpid()} on {os.uname().nodename}\n"
            os.pwrite(self._handle, name.encode(), os.fstat(self._handle).st_size)


def refuse_links(store: Path) -> None:
    """Refuse to write into a store whose folders or files are links: they could lead anywhere.

    What lies deeper is looked at when it is written to (``featstore.files.atomic.Disk``).

    Raises:
        StoreWriteError: the top of the folder holds a link.
    """
    try:
        links = sorted(entry.name for entry in os.scandir(store) if entry.is_symlink())
    except OSError:
        return  # what is wrong shows when it is written to
    if links:
        raise StoreWriteError(
            f"{store}: nothing is written where links could lead out of the store: {shorten(links)}. If you trust what "
            "they lead to, put plain folders and files in their place (cp -rL)."
        )


@contextmanager
def _held(
    path: Path, *, shared: bool, timeout_s: float, problem: Callable[[str], str]
) -> Iterator[None]:
    lock = FileLock(path)
    if not lock.acquire(shared=shared, timeout_s=timeout_s):
        raise StoreBusy(f"{problem(lock.holders())} nothing is lost.")
    try:
        yield
    finally:
        lock.release()


def exclusive(store: Path, *, links: bool = False) -> AbstractContextManager[None]:
    """Hold the exclusive lock of a store: no other process writes to it meanwhile.

    Args:
        links: accept links in it; for callers that write nothing.
    """
    if not links:
        refuse_links(store)

    def problem(holders: str) -> str:
        return f"{store}: another run is writing here ({holders}). Wait for it, or stop it;"

    return _held(store / LOCK_NAME, shared=False, timeout_s=0, problem=problem)


def shared(store: Path) -> AbstractContextManager[None]:
    """Hold the lock of a store together with other writers, and exclude those who need it alone."""
    refuse_links(store)

    def problem(holders: str) -> str:
        return (
            f"{store}: held alone, to repair or delete it, by {holders}. Wait for it, or stop it;"
        )

    return _held(store / LOCK_NAME, shared=True, timeout_s=JOIN_TIMEOUT_S, problem=problem)


def publishing(store: Path) -> AbstractContextManager[None]:
    """Hold the right to change what is committed, for a few renames."""
    path = store / PUBLISH_NAME

    def problem(holders: str) -> str:
        return (
            f"{path}: {holders} has been publishing a shard for {PUBLISH_TIMEOUT_S:.0f} s. If it was stopped, continue "
            "it (kill -CONT) or end it (kill -9);"
        )

    return _held(path, shared=False, timeout_s=PUBLISH_TIMEOUT_S, problem=problem)


def _is_dead(name: str) -> bool:
    """Whether a process of this machine has ended; a shared lock's file may still name it."""
    words = name.split()
    if len(words) != 4 or words[3] != os.uname().nodename or not words[1].isdecimal():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False

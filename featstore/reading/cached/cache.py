"""The folder that keeps what was fetched: shared by all processes of a user, and never larger than its limit.

    CACHE/
      lock                        held for the moment in which room is made or taken
      state                       two numbers that all processes map: generation, bytes taken
      stores/<url>/<version>/...  mirrors: parts of stores, laid out as stores are
      arriving/<name>/            what one process fetches just now: files ``<bytes>-<hash of the target>``, and
                                  ``lock``, which it holds meanwhile

Locks end with the process that holds them. After a kill only files in ``arriving`` are left; the next process that
makes room deletes them.

What is evicted may be mapped into the memory of other processes. Its name goes first, then the generation is counted
up, and then the bytes are given back to the disk by punching a hole: the file keeps its length, so a process that reads
it through a map gets zeros, and never a signal. So a reader of a map compares the generation before and
after, and reads again where it has changed (``featstore.reading.cached.columns``). No process has to
hold a lock while it reads,
and none that sleeps with everything mapped can keep others from making room.
"""

import ctypes
import errno
import hashlib
import mmap
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from featstore.display.text import format_bytes
from featstore.errors import ConfigError, StoreBusy, StoreWriteError
from featstore.files.atomic import refused
from featstore.files.cache_folder import cache_folder
from featstore.files.disk import free_bytes
from featstore.files.locks import FileLock
from featstore.files.untrusted import check_private_folder, make_real_folders
from featstore.format.artefacts import FOLDER as ARTEFACT_FOLDER
from featstore.format.ledger import LEDGER_FOLDER
from featstore.format.manifest import MANIFEST_NAME
from featstore.places.base import Retry

MOST_BYTES = 100 * 10**9
"""Limit where none is set, or half of what the disk has for it, if that is less."""

KEPT = 0.9
"""Share of the limit that is kept when something has to go, so that not every object costs a look at all of them."""

KEPT_FOLDERS = (LEDGER_FOLDER, ARTEFACT_FOLDER)  # of a store: small, and not counted

LOCK_TIMEOUT_S = 3600.0
"""How long to wait for the lock; it is held for milliseconds, or for one batch where the cache is too small."""

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)


def _default_bytes() -> int:
    given = os.environ.get("FEATSTORE_CACHE_BYTES", "0")
    try:
        return int(float(given))
    except (ValueError, OverflowError):
        raise ConfigError(
            f"FEATSTORE_CACHE_BYTES is {given!r}; expected a number of bytes, such as 50e9."
        ) from None


def _default_offline() -> bool:
    return os.environ.get("FEATSTORE_OFFLINE", "0") not in ("", "0")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where and how what is read from a URL is kept."""

    folder: Path = field(default_factory=cache_folder)
    """Of the cache, on a local disk; ``FEATSTORE_CACHE``, or ~/.cache/featstore."""
    most_bytes: int = field(default_factory=_default_bytes)
    """Limit on the objects of all stores in the folder; ``FEATSTORE_CACHE_BYTES``. 0 takes 100 GB, or half of what is
    free and cached there if that is less."""
    offline: bool = field(default_factory=_default_offline)
    """Ask no server, and read what is cached of the version that was opened last; ``FEATSTORE_OFFLINE=1``."""
    jobs: int = 16
    """Files that are fetched at a time."""
    retry: Retry = field(default_factory=Retry)
    """How often a failed request is made again."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError: a number is out of range."""
        if self.most_bytes < 0 or self.jobs < 1:
            raise ConfigError(
                f"cache of {self.most_bytes} bytes with {self.jobs} jobs: expected 0 or more bytes and 1 or more jobs."
            )


class Arrival:
    """Files that this process has made room for and fetches, each under a temporary name.

    Attributes:
        temporary: where to write each file, by where it belongs.
    """

    def __init__(self, root: Path, folder: Path, lock: FileLock, sizes: Mapping[Path, int]) -> None:
        self.temporary = {path: folder / f"{size}-{_hash(path)}" for path, size in sizes.items()}
        self.root, self.folder, self.lock = root, folder, lock

    def publish(self, path: Path) -> None:
        """Give a file, which is complete and was checked, its name."""
        with refused(path, 0):
            make_real_folders(self.root, path.parent)
            self.temporary[path].replace(path)


class Cache:
    """One cache folder, as one process sees it. May be used by several threads, and after a fork."""

    def __init__(self, config: CacheConfig) -> None:
        """Make the folder."""
        self.config = config
        self.folder = config.folder.absolute()
        self.stores = self.folder / "stores"
        self._arriving = self.folder / "arriving"
        self._alone = threading.local()
        self.make_folders()
        with self.alone():
            self._map_state()
        used = self._numbers[1]
        free = free_bytes(self.folder)
        self.most_bytes = config.most_bytes or min(MOST_BYTES, (free + used) // 2)

    @property
    def generation(self) -> int:
        """A number that changes before any byte of an object that had a name is given back to the disk."""
        return self._numbers[0]

    def refresh(self) -> None:
        """Make the folder again if it was deleted; call it before looking for objects."""
        try:
            same = os.path.samestat(self._stat, (self.folder / "state").stat())
        except OSError:
            same = False
        if not same:
            self.make_folders()
            with self.alone():
                self._map_state()

    def make_folders(self) -> None:
        """Make the folders for this user alone, and refuse those in which other users could put files or links."""
        with refused(self.folder, 0):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.folder, self.stores, self._arriving):
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                check_private_folder(folder)
            except OSError as error:
                raise StoreWriteError(
                    f"{folder}: cannot be used as a cache: {error.strerror}. Make it a folder that only you can "
                    f"write to (chmod 700 {self.folder}), or set FEATSTORE_CACHE to another one."
                ) from None
        if not os.access(self.folder, os.W_OK):
            raise StoreWriteError(
                f"{self.folder}: cannot be written to. Make it writable, or set FEATSTORE_CACHE to another folder."
            )

    def _map_state(self) -> None:
        path = self.folder / "state"
        with refused(path, 16):
            how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(path, how, 0o600)
            try:
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                    raise OSError(errno.EMLINK, "not a plain file of its own; delete it")
                new = os.fstat(handle).st_size < 16
                if new:
                    os.ftruncate(handle, 16)
                self._stat = os.fstat(handle)
                self._numbers = memoryview(mmap.mmap(handle, 16)).cast("Q")
            finally:
                os.close(handle)
        if new:  # another number than any state had that lay here before
            self._numbers[0] = time.time_ns()
            self._numbers[1] = sum(size for _, size, _ in self._objects())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the cache: no other process makes or takes room. Re-entrant.

        Raises:
            StoreBusy: another process has held the lock for very long; the message names it.
        """
        if getattr(self._alone, "depth", 0) and self._alone.owner == os.getpid():
            self._alone.depth += 1
            try:
                yield
            finally:
                self._alone.depth -= 1
            return
        self.make_folders()
        lock = FileLock(self.folder / "lock")
        if not lock.acquire(shared=False, timeout_s=LOCK_TIMEOUT_S):
            raise StoreBusy(
                f"{lock.path}: held for {LOCK_TIMEOUT_S:.0f} s by {lock.holders()}. If it is stopped, continue it "
                "(kill -CONT) or end it; nothing is lost."
            )
        self._alone.depth, self._alone.owner = 1, os.getpid()
        try:
            yield
        finally:
            self._alone.depth = 0
            lock.release()

    def reserve(self, sizes: Mapping[Path, int], keep: Collection[Path]) -> Arrival | int | None:
        """Make room for missing files that no other process is fetching.

        Args:
            sizes: bytes of each file that is wanted, by where it belongs. All of them, and those to keep, fit into the
                limit together.
            keep: objects that must not go for it.

        Returns:
            The files that the caller has to fetch now, and then ``close``. A number where there is nothing to do but to
            wait for other processes: it changes as they progress. None when all files are there.
        """
        with self.alone(), refused(self.folder, 0):
            # In this order: a file that is published meanwhile is seen here or there.
            others = self._others()
            missing = {path: size for path, size in sizes.items() if not path.exists()}
            if not missing:
                return None
            mine = {path: size for path, size in missing.items() if _hash(path) not in others}
            if not mine:
                return sum(arrived for _, arrived in others.values())
            total = sum(mine.values())
            if self._numbers[1] + total > self.most_bytes:
                taken = sum(size for size, _ in others.values())
                if not self._make_room(total, taken, keep):
                    if not others:
                        raise StoreWriteError(
                            f"{self.folder}: no room for {total:,} bytes within {self.most_bytes:,}: what is there "
                            "cannot be deleted. Look at the rights of the folder, or set FEATSTORE_CACHE."
                        )
                    return sum(arrived for _, arrived in others.values())
            self._numbers[1] += total
            return self._begin(mine)

    def close(self, arrival: Arrival) -> None:
        """Give back the room that was not used, and let others fetch what did not arrive."""
        with self.alone():
            left = sum(_reserved(path) for path in arrival.folder.glob("*-*"))
            self._numbers[1] = max(0, self._numbers[1] - left)
            shutil.rmtree(arrival.folder, ignore_errors=True)
            arrival.lock.release()

    def discard(self, path: Path) -> None:
        """Take away an object that turned out to be damaged, for all processes."""
        with self.alone():
            size = _remove(path)
            self._numbers[1] = max(0, self._numbers[1] - size)
            self._numbers[0] += 1

    def touch(self, path: Path, mtime_ns: int) -> None:
        """Note that an object, which was written at some time, was used just now."""
        with suppress(OSError):  # gone meanwhile, or another user's
            os.utime(path, ns=(time.time_ns(), mtime_ns), follow_symlinks=False)

    def _begin(self, sizes: Mapping[Path, int]) -> Arrival:
        folder = Path(tempfile.mkdtemp(dir=self._arriving))
        lock = FileLock(folder / "lock")
        lock.acquire(shared=False, timeout_s=0)
        arrival = Arrival(self.stores, folder, lock, sizes)
        for path in arrival.temporary.values():
            path.touch()
        return arrival

    def _others(self) -> dict[str, tuple[int, int]]:
        """(bytes reserved, bytes that have arrived) of files that are being fetched, by hash of where they belong."""
        found = {}
        for folder in self._arriving.iterdir():
            if folder.is_symlink() or not folder.is_dir():
                folder.unlink(missing_ok=True)
                continue
            lock = FileLock(folder / "lock")
            if lock.acquire(shared=False, timeout_s=0):  # the process that held it has ended
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()
                continue
            for path in folder.glob("*-*"):
                with suppress(OSError):  # published meanwhile
                    found[path.name.partition("-")[2]] = _reserved(path), path.stat().st_size
        return found

    def _make_room(self, total: int, taken: int, keep: Collection[Path]) -> bool:
        """Evict what was not used for longest until ``total`` bytes fit beside the ``taken`` ones that arrive."""
        objects = sorted(self._objects())
        used = sum(size for _, size, _ in objects) + taken
        kept = {str(path) for path in keep}
        victims = []
        for _, size, path in objects:
            if used + total <= self.most_bytes * KEPT:
                break
            if path not in kept:
                victims.append(path)
                used -= size
        self._evict(victims)
        used = sum(size for _, size, _ in self._objects()) + taken if victims else used
        self._numbers[1] = used
        return used + total <= self.most_bytes

    def _evict(self, victims: list[str]) -> None:
        for first in range(0, len(victims), 64):
            handles = []
            for path in victims[first : first + 64]:
                with suppress(OSError):
                    handles.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
                _remove(Path(path))
            self._numbers[0] += 1
            for handle in handles:
                # Where the file system cannot, the bytes stay until the last process unmaps the file.
                size = os.fstat(handle).st_size + mmap.ALLOCATIONGRANULARITY
                _libc.fallocate(handle, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(size))
                os.close(handle)

    def _objects(self) -> Iterator[tuple[int, int, str]]:
        """(time of last use, bytes, path) of everything that may be evicted."""
        for url in _folders(self.stores):
            for store in _folders(url.path):
                for part in _folders(store.path):
                    if part.name not in KEPT_FOLDERS:
                        yield from _walk(part.path)

    def check_fits(self, size: int, what: str) -> None:
        """Refuse what the cache cannot hold at a time. Raises ConfigError: says how large the limit must be."""
        if size > self.most_bytes:
            raise ConfigError(
                f"{what} needs {size:,} bytes of the cache at a time; its limit is {self.most_bytes:,}. Set "
                f"FEATSTORE_CACHE_BYTES={size} or more ({format_bytes(size)}), read rows that lie together "
                '(shuffle="blocks"), or pull the store.'
            )


def _folders(folder: str | Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as items:
        return [item for item in items if item.is_dir(follow_symlinks=False)]


def _walk(folder: str) -> Iterator[tuple[int, int, str]]:
    with os.scandir(folder) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                yield from _walk(item.path)
            elif item.name not in ("zarr.json", MANIFEST_NAME):
                with suppress(FileNotFoundError):
                    found = item.stat(follow_symlinks=False)
                    yield found.st_atime_ns, found.st_size, item.path


def _hash(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:32]


def _reserved(temporary: Path) -> int:
    return int(temporary.name.partition("-")[0])


def _remove(path: Path) -> int:
    """Delete a file; returns the bytes that it had."""
    with suppress(OSError):
        size = path.lstat().st_size
        path.unlink()
        return size
    return 0

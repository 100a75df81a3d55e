"""Read objects of a cached store that other processes may evict at any time.

An evicted object that is still mapped reads as zeros (see ``featstore.reading.cached.cache``). So after each piece of
work a counter in shared memory tells whether anything was evicted meanwhile; if so, what was read of evicted objects is
dropped and the work is done again. If that happens several times, the process takes the lock of the cache.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from featstore.errors import FeatstoreError, ShardCorrupt, StoreError
from featstore.files.array_types import Array, Mask, Rows
from featstore.files.thread_lock import ThreadLock
from featstore.format.int8 import Channels
from featstore.format.ledger import ObjectRecord, ShardRecord, read_complete
from featstore.format.manifest_records import Int8Encoding
from featstore.reading.cached.mirror import Mirror, Objects
from featstore.reading.cached.published_store import url_in_errors
from featstore.reading.shards import Shards

TRIES = 4
"""How often work is done again because objects were evicted meanwhile, before the lock of the cache is taken."""

GROUP = 256  # most objects that are fetched side by side before any of them is read
NOTE_S = 0.02  # interval at which the objects of a batch are remembered as used
TOUCH_S = 10.0  # interval at which their time of last use is written for all processes

T = TypeVar("T")
Identity = tuple[int, int]


class _Evicted(Exception):
    """An object went between its arrival and its use."""


class CachedShards(Shards):
    """The shards of a store at a URL, as one process reads them while objects come and go."""

    evicts = True

    def __init__(self, mirror: Mirror) -> None:
        mark = read_complete(mirror.folder, mirror.manifest.num_shards)
        super().__init__(mirror.folder, mirror.url, mirror.manifest, mark, mirror.shards)
        self.mirror = mirror
        self._cache = mirror.cache
        self._forget: list[weakref.WeakMethod[Callable[[int], None]]] = []
        self._known: dict[str, tuple[int, Identity]] = {}
        self._latest: tuple[str, Sequence[int]] = "", ()
        self._there: dict[str, Mask] = {}
        self._used: dict[str, Mask] = {}
        self._note_s = self._touch_s = 0.0
        self._seen = self._cache.generation
        self._lock = ThreadLock(self._leave)
        self._inside = False
        self._ahead: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave connections and maps behind."""
        return CachedShards, (self.mirror,)

    def _leave(self) -> None:
        self._inside = False

    def on_forget(self, forget: Callable[[int], None]) -> None:
        self._forget.append(weakref.WeakMethod(forget))

    def entries(self, shards: Sequence[int]) -> list[ShardRecord]:
        """See ``Shards.entries``; fetches those that are missing together."""
        self.mirror.bring_entries([item for item in shards if item not in self._entries])
        return super().entries(shards)

    def _read_entry(self, shard: int) -> ShardRecord:
        return self.mirror.entry(shard)

    def artefact(self, name: str) -> dict[str, Any]:
        return self.mirror.artefact(name)

    def channels(self) -> dict[str, Channels]:
        for field in self.manifest.fields.values():
            if isinstance(field.encoding, Int8Encoding):
                self.mirror.bring_artefact(field.encoding.channels)
        return super().channels()

    def run(self, work: Callable[[], T]) -> T:
        """See ``Shards.run``; the work is done again until no object was evicted meanwhile."""
        with self._lock:
            if self._inside:
                # Part of other work. Nothing is forgotten in the middle of that: it is done again as a whole.
                return work()
            self._inside = True
            try:
                return self._run(work)
            finally:
                self._inside = False

    def _run(self, work: Callable[[], T]) -> T:
        for number in range(2 * TRIES):
            if number < TRIES:
                done, result = self._try(work, last=False)
            else:
                # Nobody else evicts now, and this process spares what it needs itself.
                with self._cache.alone():
                    done, result = self._try(work, last=number == 2 * TRIES - 1)
            if done:
                return result
        raise AssertionError("objects were evicted although this process holds the lock")

    def _try(self, work: Callable[[], T], *, last: bool) -> tuple[bool, T]:
        """Whether nothing was evicted while some work was done, and what the work returned."""
        seen = self._settle()
        try:
            result = work()
        except (FeatstoreError, OSError, _Evicted) as error:
            if last or (self._cache.generation == seen and not self._mend(error)):
                with url_in_errors(self.mirror.url, self.mirror.folder):
                    raise
            return False, None  # type: ignore[return-value]  # not used
        return self._cache.generation == seen, result

    def read_shard(self, shard: int, column: str) -> Array:
        """See ``Shards.read_shard``; a copy."""

        def work() -> Array:
            self.bring(column, np.array([shard]))
            found = self.backend.read_shard(shard, column, self.entry(shard).objects).copy()
            if self._cache.generation != self._seen:
                # It may be zeros. As part of other work it is looked at before that work is known to be done again.
                raise _Evicted(column)
            return found

        return self.run(work)

    def groups(self, column: str, shards: Sequence[int]) -> Iterator[list[int]]:
        """Shards to read one after another, in groups; a column of the shards of a group is fetched side by side."""
        group: dict[str, tuple[int, ObjectRecord]] = {}
        size = 0
        for name, (shard, record) in self._objects(column, shards).items():
            size += record.bytes
            if group and (size > self._cache.most_bytes // 4 or len(group) == GROUP):
                yield self._fetched(group)
                group, size = {}, record.bytes
            group[name] = shard, record
        yield self._fetched(group)

    def _fetched(self, objects: Objects) -> list[int]:
        self.mirror.bring(objects)
        return [shard for shard, _ in objects.values()]

    def bring(self, column: str, shards: Rows) -> None:
        """Fetch a column of some shards, all that are needed at a time, if it is not here."""
        there = self._there_of(column)
        self._latest = column, shards.tolist()
        if there[shards].all():
            return
        objects = self._objects(*self._latest)
        self.mirror.bring(objects)
        for name, (shard, _) in objects.items():
            path = self.mirror.folder / name
            identity = _identity(path)
            if identity is None:
                raise _Evicted(name)
            self._known.setdefault(name, (shard, identity))
            self._cache.touch(path, identity[1])
        there[shards] = True

    def _there_of(self, column: str) -> Mask:
        """(number of shards,) whether a column of each was brought, and not evicted since, as far as is known."""
        if column not in self._there:
            self._there[column] = np.zeros(self.manifest.num_shards, dtype=np.bool_)
        return self._there[column]

    def ahead(self, columns: Sequence[str], shards: Rows) -> None:
        """Fetch columns of shards that will be needed soon, in another thread, unless it is still busy.

        Errors are raised when the rows are read.
        """
        missing = {column: shards[~self._there_of(column)[shards]].tolist() for column in columns}
        if not any(missing.values()) or (self._ahead is not None and self._ahead.is_alive()):
            return

        def work() -> None:
            with suppress(FeatstoreError, OSError):
                for column, numbers in missing.items():
                    objects = self._objects(column, numbers)
                    size = sum(record.bytes for _, record in objects.values())
                    if (
                        size <= self._cache.most_bytes // 4
                    ):  # else it would push out what is read now
                        self.mirror.bring(objects)

        self._ahead = threading.Thread(target=work, name="featstore-ahead", daemon=True)
        self._ahead.start()

    def _objects(self, column: str, shards: Sequence[int]) -> Objects:
        found: dict[str, tuple[int, ObjectRecord]] = {}
        for entry in self.entries(shards):
            name = self.backend.object_of(entry.shard, column)
            if name in entry.objects:  # else the backend says so
                found[name] = entry.shard, entry.objects[name]
        return found

    def note(self, column: str, rows: Rows) -> None:
        """Remember that rows of a column were read, so that their objects are not evicted first."""
        now = time.monotonic()
        if now < self._note_s:  # a sample is enough, and a batch takes no longer than this would
            return
        with self._lock:
            self._note(column, rows, now)

    def _note(self, column: str, rows: Rows, now: float) -> None:
        self._note_s = now + NOTE_S
        if column not in self._used:
            self._used[column] = np.zeros(self.manifest.num_shards, dtype=np.bool_)
        self._used[column][self.manifest.shards_of(rows)] = True
        if now < self._touch_s:
            return
        self._touch_s = now + TOUCH_S
        for name, used in self._used.items():
            for shard in np.flatnonzero(used).tolist():
                item = self.backend.object_of(shard, name)
                if item in self._known:
                    self._cache.touch(self.mirror.folder / item, self._known[item][1][1])
            used[:] = False

    def _settle(self) -> int:
        """Forget what was evicted; returns the generation as of which everything that is known is there."""
        seen = self._cache.generation
        if seen != self._seen:
            self._forget_gone()
            self._seen = seen
        return seen

    def _forget_gone(self) -> bool:
        gone = [
            name
            for name, (_, identity) in self._known.items()
            if _identity(self.mirror.folder / name) != identity
        ]
        for shard in {self._known.pop(name)[0] for name in gone}:
            self.backend.forget(shard)
            for forget in [method() for method in self._forget]:
                if forget is not None:
                    forget(shard)
            for there in self._there.values():
                there[shard] = False
        return bool(gone)

    def _mend(self, error: Exception) -> bool:
        """Whether another try may help: something was evicted, or the disk of the cache has damaged something."""
        if isinstance(error, _Evicted):
            return True
        if not isinstance(error, OSError) and type(error) not in (StoreError, ShardCorrupt):
            return False
        if self._forget_gone():
            return True
        damaged = self.mirror.damaged(self._objects(*self._latest))
        for path in damaged:
            self._cache.discard(path)
        return bool(damaged)


def _identity(path: Path) -> Identity | None:
    """Tells a file from another one of the same name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns

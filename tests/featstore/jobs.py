"""Jobs that fill a store of random rows through ``featstore.writing.fill``, some milliseconds each."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from featstore import FeatureStore
from featstore.containers import make_backend
from featstore.files import atomic, locks
from featstore.format.manifest import Manifest
from featstore.writing.claims import Claims
from featstore.writing.commit import open_or_create, tidy
from featstore.writing.fill import Filled, FolderStore, fill
from featstore.writing.shard import Shard
from tests.featstore.stores import Array, field, make_columns, make_manifest

MANIFEST = make_manifest(num_rows=19, shard_rows=2, views=1, fields={"cls": field(3)}, labels=False)
"""10 shards, the last one short, of 4 objects each."""

STEPS: list[tuple[Any, str]] = [
    (atomic.tempfile, "mkstemp"),  # type: ignore[attr-defined]
    (atomic.os, "open"),  # type: ignore[attr-defined]
    (atomic.os, "write"),  # type: ignore[attr-defined]
    (atomic.os, "pwrite"),  # type: ignore[attr-defined]
    (atomic.os, "fchmod"),  # type: ignore[attr-defined]
    (atomic.os, "fsync"),  # type: ignore[attr-defined]
    (atomic.os, "link"),  # type: ignore[attr-defined]
    (Path, "mkdir"),
    (Path, "replace"),
    (Path, "unlink"),
    (locks.fcntl, "flock"),  # type: ignore[attr-defined]
]
"""Every call by which a job changes a disk, or who may."""


def run_job(
    path: Path,
    manifest: Manifest = MANIFEST,
    *,
    lease_s: float = 60,
    start: float = 0.0,
    shard_s: float = 0.0,
    log: Path | None = None,
    columns: dict[str, Array] | None = None,
) -> Filled:
    """Make the store if it is not there, and work until it is complete, as ``featstore.extraction.shards.run`` does.

    Args:
        path: of the store.
        manifest: of the store.
        lease_s: see ``fill``.
        start: see ``fill``.
        shard_s: seconds that it takes to make a shard.
        log: gets a line with the number of every shard that is made.
        columns: what to write; the same random rows for everyone if not given.
    """
    values = make_columns(manifest) if columns is None else columns
    manifest = open_or_create(path, manifest)
    tidy(path)

    def make_shards(claims: Claims, first: int) -> Iterator[Shard]:
        for number in chain([first], iter(claims.claim_next, None)):
            if log is not None:
                note(log, number)
            time.sleep(shard_s)
            rows = manifest.shard_range(number)
            part = {name: column[rows.start : rows.stop] for name, column in values.items()}
            yield Shard(number, part, [None] * len(rows), {})

    filled = fill(
        FolderStore(make_backend(path, manifest)), make_shards, lease_s=lease_s, start=start
    )
    tidy(path)
    return filled


def note(log: Path, number: int) -> None:
    """Add a line to a file that several processes write."""
    handle = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(handle, f"{number}\n".encode())
    os.close(handle)


def check_committed(path: Path, straight: dict[str, Any]) -> int:
    """Every committed shard of an unfinished store is whole and true; returns how many there are."""
    if not (path / "manifest.json").exists():
        return 0
    store = FeatureStore.open(path, allow_incomplete=True)
    for shard in store.shards:
        for name in store.entry(shard).objects:
            assert (path / name).read_bytes() == straight[name], (shard, name)
    return len(store.shards)


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
"""A file that is opened for reading changes nothing, and no full disk refuses it."""


class Steps:
    """Lets something happen before call number ``step`` of all calls in ``STEPS`` together.

    Args:
        step: which call, from 0.
        happen: what to do then; it may raise.
        for_good: do it at every later call too, but for those that only remove something.

    Attributes:
        reached: whether it has come to it.
    """

    def __init__(self, step: int, happen: Callable[[], object], *, for_good: bool = False) -> None:
        self.reached = False
        self._left = step
        self._lock = threading.Lock()
        self._happen = happen
        self._for_good = for_good

    def patch(self, put: Callable[[Any, str, Any], None], *, without: Sequence[str] = ()) -> None:
        """Put wrappers around the calls, by ``setattr`` or something like it."""
        for module, name in STEPS:
            if name in without:
                continue
            put(module, name, self._wrap(name, getattr(module, name)))

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & WRITING:
                return original(*arguments, **options)
            with self._lock:  # syncs run side by side
                now = self._left == 0
                later = self._left < 0 and self._for_good and name != "unlink"
                self._left -= 1
            if now or later:
                self.reached = True
                self._happen()
            return original(*arguments, **options)

        return stepping


def refuse(code: int) -> Callable[[], None]:
    """Raise an ``OSError`` of this number."""

    def happen() -> None:
        raise OSError(code, os.strerror(code))

    return happen


FULL, BROKEN = errno.ENOSPC, errno.EIO

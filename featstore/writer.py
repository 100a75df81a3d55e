"""Create a store, and commit shards to it from a thread behind a bounded queue."""

import fcntl
import os
import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featstore.atomic import TEMPORARY_PREFIX, sync_folder
from featstore.backends import Backend, ZarrBackend
from featstore.backends.base import Array
from featstore.errors import StoreBusy, StoreNotFound, StoreWriteError, shorten
from featstore.ledger import LEDGER_FOLDER, InvalidRow, ShardRecord, write_entry
from featstore.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_same_contract,
    read_manifest,
    write_manifest,
)

LOCK_NAME = ".lock"


def open_or_create(store: Path, manifest: Manifest) -> Manifest:
    """Open the store for writing if it is there, else create it, whole or not at all.

    Returns:
        The manifest on disk: the older one when the store was there already.

    Raises:
        ManifestMismatch: the store was made with other settings.
        StoreNotFound: the folder holds something that is not a store.
        StoreWriteError: the disk refused.
    """
    if (store / MANIFEST_NAME).exists():
        found = read_manifest(store)
        check_same_contract(store, found=found, expected=manifest)
        return found
    if store.exists() and (not store.is_dir() or any(store.iterdir())):
        held = (
            shorten(sorted(path.name for path in store.iterdir())) if store.is_dir() else "a file"
        )
        raise StoreNotFound(
            f"{store}: exists but is not a feature store (it holds: {held}). Choose another --store.path."
        )
    try:
        _create(store, manifest)
    except OSError as error:
        if (store / MANIFEST_NAME).exists():  # another run made it in the meantime
            return open_or_create(store, manifest)
        raise StoreWriteError(
            f"{store}: cannot be created: {error}. Choose another --store.path."
        ) from error
    return manifest


def _create(store: Path, manifest: Manifest) -> None:
    store = store.resolve()  # a link to an empty folder: the folder is replaced, not the link
    store.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{store.name}-", dir=store.parent))
    try:
        temporary.chmod(0o755)
        ZarrBackend(temporary, manifest).create()
        (temporary / LEDGER_FOLDER).mkdir()
        write_manifest(temporary, manifest)
        temporary.replace(store)
        sync_folder(store.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def exclusive(store: Path) -> Iterator[None]:
    """Hold the store's writing lock; the system frees it when the process ends, however it ends.

    Raises:
        StoreBusy: another run on this machine holds it.
        StoreWriteError: the store cannot be written to.
    """
    try:
        handle = os.open(store / LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise StoreWriteError(
            f"{store}: cannot be written to: {error}. Make it writable, or choose another --store.path."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 100).decode(errors="replace").strip() or "unknown"
            raise StoreBusy(
                f"{store}: another run is writing here ({holder}). Wait for it, or stop it; nothing is lost."
            ) from None
        with suppress(
            OSError
        ):  # a courtesy to whoever finds the lock held; a full disk shows later
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        yield
    finally:
        os.close(handle)


def remove_leftovers(store: Path) -> int:
    """Delete what a killed run left behind; call it while holding the lock. Returns how many.

    That is unfinished files in the store, and beside it stores that were never finished: no run can use those any
    more, because the store is there.
    """
    store = store.resolve()
    files = list(store.rglob(f"{TEMPORARY_PREFIX}*"))
    for path in files:
        path.unlink(missing_ok=True)
    # mkdtemp's random part holds no hyphen, so the leftovers of a store called NAME-x do not match.
    unfinished = re.compile(re.escape(f"{TEMPORARY_PREFIX}{store.name}-") + "[a-z0-9_]+")
    folders = [path for path in store.parent.iterdir() if unfinished.fullmatch(path.name)]
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    return len(files) + len(folders)


@dataclass
class Shard:
    """A shard in memory, ready to be committed.

    Attributes:
        number: of the shard.
        columns: by name, (rows, *shape).
        reasons: per row, why it is invalid, or None.
        seconds: time spent so far, by part.
    """

    number: int
    columns: dict[str, Array]
    reasons: Sequence[str | None]
    seconds: dict[str, float]


def commit(backend: Backend, shard: Shard) -> ShardRecord:
    """Write every object of a shard, then its ledger entry."""
    check_columns(backend, shard.columns)
    start = time.perf_counter()
    rows = backend.manifest.shard_range(shard.number)
    objects = backend.write_shard(shard.number, shard.columns)
    invalid = tuple(
        InvalidRow(row=rows.start + i, sample_id=str(shard.columns["sample_id"][i]), reason=reason)
        for i, reason in enumerate(shard.reasons)
        if reason is not None
    )
    seconds = {**shard.seconds, "write": time.perf_counter() - start}
    record = ShardRecord(
        shard=shard.number,
        rows=(rows.start, rows.stop),
        objects=objects,
        invalid=invalid,
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )
    write_entry(backend.store, record)
    return record


class ShardWriter:
    """Commits shards in a thread, at most one waiting, so that memory holds three shards at most.

    Use as a context manager: leaving the block waits for the last shard. The first error of the thread is raised
    again by the next ``submit``, or at the end of the block.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.records: list[ShardRecord] = []
        self._queue: queue.Queue[Shard | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="featstore-writer", daemon=True)

    def __enter__(self) -> "ShardWriter":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def submit(self, shard: Shard) -> None:
        """Hand over a shard; blocks while another one waits. The caller must not touch its arrays again.

        Raises:
            StoreWriteError: an earlier shard could not be written.
        """
        self._raise()
        self._queue.put(shard)

    def _run(self) -> None:
        while (shard := self._queue.get()) is not None:
            if self._error is not None:
                continue  # drain the queue so that nobody blocks on it
            try:
                self.records.append(commit(self.backend, shard))
            except BaseException as error:  # handed to the thread that feeds us
                self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def text_column(values: Sequence[str]) -> Array:
    """An object array of text, as the backends take it."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def check_columns(backend: Backend, columns: Mapping[str, Array]) -> None:
    """Compare the names of the given columns to those of the store; a programming error otherwise."""
    if columns.keys() != backend.columns.keys():
        raise ValueError(
            f"columns {sorted(columns)} given, the store has {sorted(backend.columns)}"
        )

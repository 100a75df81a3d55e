"""Create a store, and commit shards to it from a thread.

A shard is committed in two steps. *Staged*: every object is on disk, synced, under a temporary name. *Published*, under
a lock that the system releases when its holder dies: if the shard has no ledger entry yet, the objects are renamed to
their final names, and then the entry. A kill at any moment leaves an entry with all its objects, or no entry.
"""

import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from featstore.containers import Backend, make_backend
from featstore.errors import StoreBusy, StoreNotFound, StoreWriteError, shorten
from featstore.files.atomic import (
    TEMPORARY_PREFIX,
    Disk,
    Staged,
    discard,
    publish,
    refused,
    settle,
    stage,
    sync_folder,
    sync_folders,
    sync_tree,
)
from featstore.files.locks import exclusive, publishing
from featstore.format.artefacts import write_artefacts
from featstore.format.ledger import (
    LEDGER_FOLDER,
    ObjectRecord,
    entry_bytes,
    entry_path,
    mark_complete,
    read_complete,
    read_entry,
)
from featstore.format.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_same_contract,
    read_manifest,
    write_manifest,
)
from featstore.writing.leases import LEASE_FOLDER
from featstore.writing.shard import Shard, entry_record


def open_or_create(
    store: Path, manifest: Manifest, artefacts: Mapping[str, bytes] | None = None
) -> Manifest:
    """Open a store for writing, or create it atomically.

    Args:
        artefacts: Bytes of the files that the manifest lists, by name.

    Returns:
        The manifest on disk: the first run's, if the store exists already.

    Raises:
        ManifestMismatch: The store has another contract.
        StoreNotFound: The folder holds something that is not a store.
    """
    if (store / MANIFEST_NAME).exists():
        return _open(store, manifest)
    if store.exists() and (not store.is_dir() or any(store.iterdir())):
        held = (
            shorten(sorted(path.name for path in store.iterdir())) if store.is_dir() else "a file"
        )
        if (store / MANIFEST_NAME).exists():  # another run created it meanwhile
            return _open(store, manifest)
        raise StoreNotFound(
            f"{store}: exists but is not a feature store (it holds: {held}). Choose another --store.path."
        )
    try:
        _create(store, manifest, artefacts or {})
    except Exception as error:
        if (store / MANIFEST_NAME).exists():
            # Another run created it meanwhile, and may have deleted our temporary folder.
            return _open(store, manifest)
        if isinstance(error, OSError):
            raise StoreWriteError(
                f"{store}: cannot be created: {error}. Choose another --store.path."
            ) from error
        raise
    return manifest


def _open(store: Path, manifest: Manifest) -> Manifest:
    found = read_manifest(store)
    check_same_contract(store, found=found, expected=manifest)
    return found


def _create(store: Path, manifest: Manifest, artefacts: Mapping[str, bytes]) -> None:
    store = store.resolve()  # a link to an empty folder: the folder is replaced, not the link
    store.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{store.name}-", dir=store.parent))
    try:
        temporary.chmod(0o755)
        make_backend(temporary, manifest).create()
        (temporary / LEDGER_FOLDER).mkdir()
        write_artefacts(temporary, manifest, artefacts)
        write_manifest(temporary, manifest)
        sync_tree(temporary)  # the container's library syncs nothing
        temporary.replace(store)
        sync_folder(store.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def tidy(store: Path) -> bool:
    """Delete temporary files of killed runs, unless another process writes to the store; returns whether it did."""
    try:
        with exclusive(store):
            remove_leftovers(store)
    except StoreBusy:
        return False  # the files may be in use; the last process to end deletes them
    return True


def remove_leftovers(store: Path) -> int:
    """Delete temporary files of killed runs; call it while holding the exclusive lock. Returns how many.

    These are unfinished files in the store, leases, and unfinished stores of its name in the parent folder, which no
    run can use any more because the store exists.
    """
    store = store.resolve()
    # Unfinished files are at the top and one level below; folders of objects need not be listed.
    files = [*store.glob(f"{TEMPORARY_PREFIX}*"), *store.glob(f"*/{TEMPORARY_PREFIX}*")]
    leases = store / LEASE_FOLDER
    files += [path for path in leases.glob("*.json") if not path.name.startswith(TEMPORARY_PREFIX)]
    for path in files:
        path.unlink(missing_ok=True)
    # mkdtemp's random part holds no hyphen, so the leftovers of a store called NAME-x do not match.
    unfinished = re.compile(re.escape(f"{TEMPORARY_PREFIX}{store.name}-") + "[a-z0-9_]+")
    folders = [path for path in store.parent.iterdir() if unfinished.fullmatch(path.name)]
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(leases, ignore_errors=True)
    return len(files) + len(folders)


def commit(backend: Backend, shard: Shard, disk: Disk | None = None) -> bool:
    """Write every object of a shard under a temporary name, then publish the shard.

    Args:
        disk: Disk of the store; one for all shards of a process saves syncs.

    Returns:
        False if another process committed this shard first; its objects are kept.

    Raises:
        StoreWriteError: The disk is full, read-only or broken. The shard is committed as a whole, or not at all.
        StoreBusy: Another process stopped while publishing.
    """
    if disk is None:
        with Disk(backend.store) as own:
            return commit(backend, shard, own)
    start = time.perf_counter()
    store, tag = backend.store, f"{shard.number:08d}-"
    staged: list[Staged] = []
    objects: dict[str, ObjectRecord] = {}
    try:
        for item in backend.encode(shard.number, shard.columns):
            # All in one folder, so that leftovers are found without a walk.
            done = stage(
                store / item.name,
                item.parts,
                folder=store,
                block_bytes=item.block_bytes,
                tag=tag,
                pool=disk.pool,
            )
            staged.append(done)
            objects[item.name] = ObjectRecord(
                bytes=done.bytes, block_bytes=item.block_bytes, crc32c=done.crc32c
            )
        disk.make_folders([item.path.parent for item in staged])
        settle(staged)
        record = entry_record(backend, shard, objects, write_s=time.perf_counter() - start)
        path = entry_path(store, shard.number)
        staged.append(stage(path, [entry_bytes(record)], folder=path.parent, tag=tag))
        return publish_shard(disk, staged)
    except BaseException:
        discard(staged)
        raise


def publish_shard(disk: Disk, staged: Sequence[Staged]) -> bool:
    """Rename the files of a shard to their final names, its ledger entry last, unless the entry exists already.

    Objects with an entry are never replaced, because those of another machine may differ in their last bits. The lock
    is held only for the renames and the syncs between them and the entry.

    Args:
        staged: Objects and the entry, all of them on disk.
    """
    *objects, entry = staged
    with publishing(disk.root):
        if entry.path.exists():
            discard(staged)
            return False
        publish(objects, disk.pool)
        with refused(entry.path, entry.bytes):
            entry.temporary.replace(entry.path)
    sync_folders([entry.path.parent])
    return True


def finish(store: Path, num_shards: int) -> None:
    """Mark a store whose shards all have entries as complete; a second call changes nothing.

    Raises:
        ShardCorrupt: An entry cannot be read.
    """
    if read_complete(store, num_shards) is not None:
        return
    with publishing(store):
        if read_complete(store, num_shards) is None:
            mark_complete(store, (read_entry(store, shard) for shard in range(num_shards)))


class ShardWriter:
    """Commits shards in a thread, one at a time, while the next one is computed; memory holds two shards at most.

    Use as a context manager: leaving the block waits for the last shard. The first error of the thread is raised by the
    next call, or at the end of the block.

    Args:
        commit: Writes a shard; returns whether this process committed it.
        done: Called in the thread after a commit, with the shard's number and whether this process committed it.
    """

    def __init__(self, commit: Callable[[Shard], bool], done: Callable[[int, bool], None]) -> None:
        self._commit = commit
        self._done = done
        self._queue: queue.Queue[Shard | None] = queue.Queue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="featstore-writer", daemon=True)

    def __enter__(self) -> "ShardWriter":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self.check()

    def submit(self, shard: Shard) -> None:
        """Queue a shard; blocks until the previous one is committed. The caller must not use its arrays again.

        Raises:
            StoreWriteError: An earlier shard could not be written.
        """
        self.flush()
        self._queue.put(shard)

    def flush(self) -> None:
        """Wait until the queued shard is committed.

        Raises:
            StoreWriteError: It could not be written.
        """
        self._queue.join()
        self.check()

    def check(self) -> None:
        """Raise the error of the thread, if there is one."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (shard := self._queue.get()) is not None:
            try:
                self._done(shard.number, self._commit(shard))
            except BaseException as error:  # raised again in the calling thread
                self._error = self._error or error
            del shard  # frees memory for the next shard
            self._queue.task_done()

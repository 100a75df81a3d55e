"""The local folder that a store is pulled into: no store until every file has arrived, and found again after a kill.

Files arrive in ``.partial-NAME.pull`` beside the destination folder. A copy of the manifest in it says which store they
belong to.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featstore.display.text import format_bytes
from featstore.errors import ManifestMismatch, StoreBusy, StoreNotFound, StoreWriteError, shorten
from featstore.files.atomic import (
    TEMPORARY_PREFIX,
    exchange,
    make_folder,
    refused,
    sync_folder,
    write_bytes,
)
from featstore.files.disk import free_bytes
from featstore.files.locks import LOCK_NAME, exclusive
from featstore.files.untrusted import read_plain
from featstore.format.manifest import MANIFEST_NAME
from featstore.maintenance.list_and_delete import (
    DELETED_PREFIX,
    check_deletable,
    remove_interrupted_deletions,
)
from featstore.reading.cached.published_store import UNFINISHED_NAME, Contents

UNFINISHED_MARK = f"{TEMPORARY_PREFIX}complete.json"
"""The mark of the store whose files are in a folder so far, when its ledger entries are known to be of that store."""


def partial_folder(store: Path) -> Path:
    """Return the folder in which a store arrives."""
    return store.parent / f"{TEMPORARY_PREFIX}{store.name}.pull"


def manifest_at(store: Path, *, replace: bool) -> bytes | None:
    """Read the manifest of the store in a folder; None where a new store may be put.

    Args:
        replace: The store there may be replaced; check that it may be deleted.

    Raises:
        StoreNotFound: something else is there.
    """
    with refused(store, 0):
        if not store.exists() or (store.is_dir() and not any(store.iterdir())):
            return None
        if not (store / MANIFEST_NAME).is_file():
            held = sorted(path.name for path in store.iterdir()) if store.is_dir() else ["a file"]
            raise StoreNotFound(
                f"{store}: exists but is not a feature store (it holds: {shorten(held)}). Choose another folder."
            )
        if replace:
            check_deletable(store, force=False)
        return read_plain(store, MANIFEST_NAME)


def another_store(store: Path, url: str) -> ManifestMismatch:
    """Build the error for a folder that holds another store."""
    return ManifestMismatch(
        f"{store}: holds another store, or another version, than {url}. Choose another folder, or replace it with "
        "--replace: unchanged files are not downloaded again."
    )


@contextmanager
def unfinished(store: Path, contents: Contents) -> Iterator[Path]:
    """Hold the folder in which a store arrives alone; it is emptied if it belongs to another manifest."""
    folder = partial_folder(store)
    with refused(folder, 0):
        make_folder(folder)
    with exclusive(folder):
        if read_if_there(folder, UNFINISHED_NAME) != contents.manifest_bytes:
            _empty(folder)
            write_bytes(folder / UNFINISHED_NAME, contents.manifest_bytes)
        yield folder


def _empty(folder: Path) -> None:
    with refused(folder, 0):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_NAME:
                path.unlink()


def read_if_there(folder: Path, name: str) -> bytes | None:
    """Read a small file of a store; None where it cannot be read."""
    with suppress(OSError):
        return read_plain(folder, name)
    return None


def trust_entries(folder: Path, contents: Contents) -> bool:
    """Whether the entries in an unfinished folder come from this very store; from here on they do."""
    if read_if_there(folder, UNFINISHED_MARK) == contents.mark_bytes:
        return True
    write_bytes(folder / UNFINISHED_MARK, contents.mark_bytes)
    return False


def check_room(folder: Path, size: int) -> None:
    """Refuse to start where the disk has no room.

    Args:
        folder: What is in it counts as there.
    """
    there = sum(
        Path(here, file).lstat().st_size for here, _, files in os.walk(folder) for file in files
    )
    free = free_bytes(folder)
    if size - there > free:
        raise StoreWriteError(
            f"{folder.parent}: {format_bytes(free)} are free there, {format_bytes(size - there)} are still to come. "
            "Choose another disk, free some space, or take a part: --fields, --where, --rows."
        )


def sync_folders_below(folder: Path) -> None:
    """Make the names of all files below a folder durable; their bytes are."""
    with refused(folder, 0):
        for here, _, _ in os.walk(folder, topdown=False):
            sync_folder(Path(here))


def publish_folder(folder: Path, store: Path, *, old: bool) -> None:
    """Give a folder whose files have all arrived the name of the store.

    A store that is there and the new one exchange their names in one step, so that at any moment one of them has it.
    Where the system or the file system cannot do that, there are two renames; a process that is killed between them
    leaves both folders, and the same pull resumes.

    Args:
        folder: Held alone.
        old: A store is there; it is deleted at the end.

    Raises:
        StoreBusy: another process writes to the old one.
    """
    with refused(store, 0):
        for name in (LOCK_NAME, UNFINISHED_MARK):
            (folder / name).unlink(missing_ok=True)
        if not old:
            folder.replace(store)
        else:
            with exclusive(store):
                aside = Path(
                    tempfile.mkdtemp(prefix=f"{DELETED_PREFIX}{store.name}-", dir=store.parent)
                )
                try:
                    exchange(folder, store)
                except OSError as error:
                    if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
                        raise
                    store.replace(aside)
                    folder.replace(store)
                else:
                    folder.replace(aside)
        sync_folder(store.parent)
        (store / UNFINISHED_NAME).unlink(missing_ok=True)


def remove_remains(store: Path, manifest: bytes) -> None:
    """Delete what interrupted pulls and deletions have left beside a store that is whole.

    Args:
        manifest: Its manifest; a pull of another one that was interrupted is kept, as it can be resumed.
    """
    remove_interrupted_deletions(store)
    for folder in (partial_folder(store), partial_folder(store).with_suffix(".part")):
        begun = read_if_there(folder, UNFINISHED_NAME)
        if begun in (None, manifest) and folder.is_dir() and not folder.is_symlink():
            # Without that file it is the store that was there before.
            with suppress(StoreBusy, StoreWriteError), exclusive(folder, links=True):
                shutil.rmtree(folder, ignore_errors=True)

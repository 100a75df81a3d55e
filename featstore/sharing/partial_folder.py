"""The local folder that a store is pulled into: no store until everything is there, and found again after a kill.

What arrives lies in ``.partial-NAME.pull`` beside the folder that it becomes, bound to the manifest that it is of.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featstore.errors import ManifestMismatch, StoreNotFound, StoreWriteError, shorten
from featstore.files.atomic import TEMPORARY_PREFIX, make_folder, refused, sync_folder, write_bytes
from featstore.files.disk import free_bytes
from featstore.files.locks import LOCK_NAME, exclusive
from featstore.files.untrusted import read_plain
from featstore.format.manifest import MANIFEST_NAME
from featstore.maintenance.list_and_delete import DELETED_PREFIX, check_deletable
from featstore.reading.cached.published_store import MARK_NAME, UNFINISHED_NAME, Contents
from featstore.sharing.receiver import entries_sha256
from featstore.text import format_bytes

UNFINISHED_MARK = f"{TEMPORARY_PREFIX}complete.json"
"""The mark of the store whose files are in a folder so far, when their entries are known to be its."""


def manifest_at(store: Path, *, replace: bool) -> bytes | None:
    """The manifest of the store that is in a folder; None where a new one may come.

    Args:
        store: the folder.
        replace: a store that is there may go; it is looked at whether it may.

    Raises:
        StoreNotFound: something else is there.
        StoreError: see ``featstore.maintenance.list_and_delete.check_deletable``.
    """
    if not store.exists() or (store.is_dir() and not any(store.iterdir())):
        return None
    if not (store / MANIFEST_NAME).is_file():
        raise StoreNotFound(
            f"{store}: exists but is not a feature store "
            f"(it holds: {shorten(sorted(path.name for path in store.iterdir())) if store.is_dir() else 'a file'}). "
            "Choose another folder."
        )
    if replace:
        check_deletable(store, force=False)
    with refused(store, 0):
        return read_plain(store, MANIFEST_NAME)


def another_store(store: Path, url: str) -> ManifestMismatch:
    """The error for a folder that holds another store."""
    return ManifestMismatch(
        f"{store}: holds another store, or another version, than {url}. Choose another folder, or put the one from "
        "there into its place with --replace: what both have does not travel."
    )


@contextmanager
def unfinished(store: Path, contents: Contents) -> Iterator[Path]:
    """The folder beside a store in which it grows, held alone; emptied if it belongs to another manifest.

    Raises:
        StoreBusy: somebody else pulls into the same folder.
        StoreWriteError: the disk refused.
    """
    folder = store.parent / f"{TEMPORARY_PREFIX}{store.name}.pull"
    with refused(folder, 0):
        make_folder(folder)
    with exclusive(folder):
        if _read_if_there(folder, UNFINISHED_NAME) != contents.manifest_bytes:
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


def _read_if_there(folder: Path, name: str) -> bytes | None:
    with suppress(OSError):
        return read_plain(folder, name)
    return None


def trust_entries(folder: Path, contents: Contents) -> bool:
    """Whether the entries in an unfinished folder come from this very store; from here on they do."""
    if _read_if_there(folder, UNFINISHED_MARK) == contents.mark_bytes:
        return True
    write_bytes(folder / UNFINISHED_MARK, contents.mark_bytes)
    return False


def same_ledger(store: Path, contents: Contents) -> bool:
    """Whether a store's entries are those of another copy, as their hash says."""
    expected = contents.mark.entries_sha256
    if not expected or _read_if_there(store, MARK_NAME) != contents.mark_bytes:
        return False
    return entries_sha256(store, contents.mark.shards) == expected


def check_room(folder: Path, size: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: what is in it counts as there.
        size: bytes of the whole.

    Raises:
        StoreWriteError: less than that is free.
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
    """Make the names of all files below a folder durable; their bytes are.

    Raises:
        StoreWriteError: the disk refused.
    """
    with refused(folder, 0):
        for here, _, _ in os.walk(folder, topdown=False):
            sync_folder(Path(here))


def give_name(folder: Path, store: Path, *, old: bool) -> None:
    """Let an unfinished folder that is whole become the store.

    Args:
        folder: is held alone.
        store: where it goes.
        old: a store is there; it is deleted, after the new one has its name.

    Raises:
        StoreBusy: somebody writes to the old one.
        StoreWriteError: the disk refused.
    """
    with refused(store, 0):
        for name in (LOCK_NAME, UNFINISHED_MARK):
            (folder / name).unlink(missing_ok=True)
        if not old:
            folder.replace(store)
        else:
            with exclusive(store):
                prefix = f"{DELETED_PREFIX}{store.name}-"
                aside = Path(tempfile.mkdtemp(prefix=prefix, dir=store.parent))
                store.replace(aside)
                folder.replace(store)
        sync_folder(store.parent)
        (store / UNFINISHED_NAME).unlink(missing_ok=True)
        if old:
            shutil.rmtree(aside)

"""List and delete stores. No shard is read."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featstore.containers import make_backend
from featstore.containers.metadata import metadata_files
from featstore.errors import StoreError, StoreNotFound, StoreWriteError, shorten
from featstore.files.atomic import TEMPORARY_PREFIX, sync_folder
from featstore.files.locks import LOCK_NAME, PUBLISH_NAME, exclusive
from featstore.format.artefacts import FOLDER as ARTEFACT_FOLDER
from featstore.format.file_names import CARD_NAME, CARD_PAGE_NAME, SIGNATURE_NAME
from featstore.format.ledger import LEDGER_FOLDER, committed_shards, read_complete
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from featstore.writing.leases import LEASE_FOLDER

DELETED_PREFIX = ".deleted-"  # start of the name of a folder that is being deleted


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What is known of a store without reading its shards."""

    path: str | Path
    problem: str = ""  # why it cannot be read; the rest is then empty
    rows: int = 0
    shards: tuple[int, int] = (0, 0)  # that are there, and that there will be
    # fields, teachers: names; teachers as their library calls them
    fields: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    bytes: int | None = None  # of all objects; None while it is incomplete
    created: str = ""

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return not self.problem and self.shards[0] == self.shards[1]


def find_stores(folder: Path) -> Iterator[StoreSummary]:
    """Find every store at or below a folder, in the order of their paths; links to folders are not followed."""
    if not folder.is_dir():
        raise StoreNotFound(f"{folder}: no such folder.")
    for place, folders, files in os.walk(folder):
        if MANIFEST_NAME in files and LEDGER_FOLDER in folders:
            folders.clear()
            yield summarise(Path(place))
        folders[:] = sorted(
            name for name in folders if not name.startswith((TEMPORARY_PREFIX, DELETED_PREFIX))
        )


def summarise(store: Path) -> StoreSummary:
    """Describe a store; one that cannot be read is a summary with a problem."""
    try:
        manifest = read_manifest(store)
        mark = read_complete(store, manifest.num_shards)
        shards = len(committed_shards(store, manifest.num_shards))
    except StoreError as error:
        return StoreSummary(path=store, problem=str(error).removeprefix(f"{store}/"))
    return describe_store(store, manifest, shards, None if mark is None else mark.bytes)


def describe_store(
    path: str | Path, manifest: Manifest, shards: int, size: int | None
) -> StoreSummary:
    """Build the summary of a store that can be read."""
    return StoreSummary(
        path=path,
        rows=manifest.num_rows,
        shards=(shards, manifest.num_shards),
        fields=tuple(sorted(manifest.fields)),
        teachers=tuple(f"{item.name} {item.tag}".rstrip() for item in manifest.teachers.values()),
        bytes=size,
        created=manifest.created,
    )


def check_deletable(store: Path, *, force: bool) -> None:
    """Refuse to delete what is not a store, or holds more than a store.

    Args:
        force: accept a manifest that cannot be read, and files that are not the store's.

    Raises:
        StoreNotFound: nothing there, a link, or not a store.
        StoreError: it holds files that are not the store's.
    """
    if store.is_symlink():
        raise StoreNotFound(
            f"{store}: a link to {store.resolve()}. Delete that, then remove the link."
        )
    try:
        manifest = read_manifest(store)
    except StoreError as error:
        if not (store / MANIFEST_NAME).is_file() or not (store / LEDGER_FOLDER).is_dir():
            raise StoreNotFound(
                f"{store}: not a feature store ({MANIFEST_NAME} and {LEDGER_FOLDER}/ make one), so it is not deleted. "
                "Remove it by hand if you are sure."
            ) from None
        if not force:
            raise StoreNotFound(f"{error} To delete it all the same: --force.") from None
        return
    foreign = _foreign_names(store, manifest)
    if foreign and not force:
        raise StoreError(
            f"{store}: holds files that are not of the store: {shorten(foreign)}. Move them away, or delete them "
            "with it: --force."
        )


def _foreign_names(store: Path, manifest: Manifest) -> list[str]:
    """List names at the top of the folder that are not of the format; subfolders are not read."""
    names = [MANIFEST_NAME, LEDGER_FOLDER, ARTEFACT_FOLDER, LOCK_NAME, PUBLISH_NAME]
    names += [CARD_NAME, CARD_PAGE_NAME, SIGNATURE_NAME]
    objects = make_backend(store, manifest).object_names(0)
    known = {name.split("/")[0] for name in [*names, *objects, *metadata_files(manifest)]}
    known.add(LEASE_FOLDER)
    return sorted(
        path.name
        for path in store.iterdir()
        if path.name not in known and not path.name.startswith(TEMPORARY_PREFIX)
    )


def delete_store(store: Path, *, force: bool = False) -> None:
    """Delete a store: its folder is renamed at once, then its files are removed. Links in it are not followed.

    What an interrupted deletion of the same store has left is removed first; where that is all, it is enough.
    """
    if remove_interrupted_deletions(store.absolute()) and not os.path.lexists(store):
        return
    check_deletable(store, force=force)
    store = store.resolve()
    with exclusive(store, links=True):
        try:
            prefix = f"{DELETED_PREFIX}{store.name}-"
            aside = Path(tempfile.mkdtemp(prefix=prefix, dir=store.parent))
            store.replace(aside)  # a folder may replace an empty one
            sync_folder(store.parent)
        except OSError as error:
            raise StoreWriteError(
                f"{store}: cannot be renamed ({error.strerror}), so nothing was deleted. Make {store.parent} writable."
            ) from error
    try:
        shutil.rmtree(aside)
    except OSError as error:
        raise StoreWriteError(
            f"{store}: is deleted, but {aside} could not be removed completely ({error.strerror}). Remove it by hand."
        ) from error


def interrupted_deletions(store: Path) -> list[Path]:
    """List folders that interrupted deletions of a store have left beside it."""
    # mkdtemp's random part holds no hyphen, so those of a store called NAME-x do not match.
    pattern = re.compile(re.escape(f"{DELETED_PREFIX}{store.name}-") + "[a-z0-9_]{8}")
    try:
        found = [path for path in store.parent.iterdir() if pattern.fullmatch(path.name)]
    except OSError:
        return []
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def remove_interrupted_deletions(store: Path) -> int:
    """Complete interrupted deletions of a store; returns how many."""
    found = interrupted_deletions(store)
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return len(found)

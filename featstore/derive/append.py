"""Append rows to a finished store as a new version; old rows keep their numbers.

The new version is built in a temporary folder next to the store. Full shards are hard links to the same files; only a
last shard that was not full is written again, with the new rows. Then the two folders are exchanged in one step. So a
kill leaves the old version or the new one, and readers of the old version keep their mapped files.
"""

# N rows of the new version

import datetime
import errno
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

from featstore.containers import make_backend
from featstore.derive.compatibility import (
    check_same_rows,
    common_artefacts,
    common_classes,
    common_fields,
    common_origin,
    joined_labels,
)
from featstore.derive.composition import Composition, RowAxis, ShardMaker, cut_like, ids_of
from featstore.derive.matching import samples_of
from featstore.derive.merge_rows import Duplicates, without_duplicates
from featstore.errors import ConfigError, ManifestMismatch, StoreWriteError, shorten
from featstore.files.array_types import Rows
from featstore.files.atomic import (
    TEMPORARY_PREFIX,
    Disk,
    exchange,
    refused,
    sync_folder,
    sync_folders,
    write_bytes,
)
from featstore.files.locks import exclusive
from featstore.files.progress import Progress, no_progress
from featstore.format.ids import ids_sha256
from featstore.format.ledger import LEDGER_FOLDER, entry_path
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import (
    RaggedEncoding,
    SourceRecord,
    VersionRecord,
    WorkRecord,
)
from featstore.reading.store import FeatureStore
from featstore.writing.commit import open_or_create, remove_leftovers
from featstore.writing.fill import check_apart, make_store

OPTIONAL_FILES = ("README.md", "card.html")
"""Optional files that are copied into the new version; a signature is not, because it signs the old one."""


@dataclass(frozen=True)
class Appended:
    """Result of ``append``."""

    manifest: Manifest
    rows: int  # number of rows that were added; 0 if the store had all of them
    # notes for the user, e.g. how many rows were left out
    notes: list[str] = field(default_factory=list)


def append(
    store: Path, new: Path, *, duplicates: Duplicates = "refuse", progress: Progress = no_progress
) -> Appended:
    """Append the rows of a store to another, finished one, or resume.

    Arguments and errors as for ``featstore.append``. If the store has all images, nothing is done.
    """
    with exclusive(store):
        return append_alone(store, new, duplicates=duplicates, progress=progress)


def append_alone(
    store: Path, new: Path, *, duplicates: Duplicates = "refuse", progress: Progress = no_progress
) -> Appended:
    """As ``append``, for a caller that holds the exclusive lock of the store."""
    store = store.resolve()  # of a link, the target grows
    check_apart(new, store)
    old, other = FeatureStore.open(store), FeatureStore.open(new)
    check_same_rows(old, other.manifest, where=other.path)
    rows, notes = without_duplicates(samples_of([old, other]), duplicates, all_known=True)
    if len(rows) == old.num_rows:
        remove_leftovers(store)
        return Appended(old.manifest, 0, notes)
    check_tars(old, other.manifest.work, where=other.path)
    plan, more = plan_append(old, other, rows)
    folder = _version_folder(old, other)
    _create_or_reuse(folder, plan)
    link_shards(old, folder, plan.manifest)
    make = ShardMaker(plan)
    manifest = make_store(folder, plan.manifest, plan.artefacts, make, progress=progress)
    _copy_optional_files(store, folder)
    _replace(store, folder)
    remove_leftovers(store)
    return Appended(manifest, len(rows) - old.num_rows, notes + more)


def plan_append(old: FeatureStore, new: FeatureStore, rows: Rows) -> tuple[Composition, list[str]]:
    """Plan what the next version of a store will be.

    Args:
        rows: (N,) row numbers, counted through both stores; all old ones first.

    Returns:
        The plan, and notes for the user.

    Raises:
        ConfigError: Names of classes or artefacts conflict.
    """
    stores, before, notes = (old, new), old.manifest, []
    everything = len(rows) == old.num_rows + new.num_rows
    axis = RowAxis(stores, range(len(rows)) if everything else rows)
    source = before.source
    classes, numbers = common_classes(stores) if source.has_labels else ((), [None, None])
    if new.manifest.source.has_labels and not source.has_labels:
        notes.append(f"{new.path}: its labels are left out, because {old.path} has none")
    labels = joined_labels(stores, numbers, rows) if source.has_labels else None
    fields = common_fields([before, new.manifest])
    artefacts, files = common_artefacts(stores)
    version = VersionRecord(
        version=before.version,
        created=before.created,
        rows=before.num_rows,
        fingerprint=before.fingerprint,
    )
    same = (source.kind, source.uri) == (new.manifest.source.kind, new.manifest.source.uri)
    uris = dict.fromkeys([*source.uri.split(", "), new.manifest.source.uri])
    manifest = Manifest.model_validate(
        {
            **before.model_dump(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "created_by": common_origin(stores, "appended"),
            "fields": fields,
            "artefacts": artefacts,
            "source": SourceRecord(
                kind=source.kind if same else "merged",
                uri=source.uri if same else ", ".join(uris),
                num_samples=len(rows),
                ids_sha256=ids_sha256(ids_of(axis, len(rows))),
                has_labels=source.has_labels,
                class_names=classes,
            ),
            "work": _longer_work(old, new, rows),
            "history": (*before.history, version),
        }
    )
    return Composition(manifest, files, axis, labels=labels), notes


def _longer_work(old: FeatureStore, new: FeatureStore, rows: Rows) -> WorkRecord:
    """The old shards followed by new ones; one for each new tar where shards mirror tars."""
    work = old.manifest.work
    if not work.shard_sizes:
        return work
    added = rows[old.num_rows :] - old.num_rows
    if not work.shard_names:
        whole, rest = divmod(len(added), work.shard_rows)
        more = [work.shard_rows] * whole + [rest] * (rest > 0)
        return work.model_copy(update={"shard_sizes": (*work.shard_sizes, *more)})
    more_work = cut_like(new.manifest, added)
    return WorkRecord(
        shard_rows=max(work.shard_rows, more_work.shard_rows),
        batch_size=work.batch_size,
        shard_sizes=(*work.shard_sizes, *more_work.shard_sizes),
        shard_names=(*work.shard_names, *more_work.shard_names),
    )


def check_tars(old: FeatureStore, new: WorkRecord, *, where: object) -> None:
    """Check that a store which mirrors tars can take the new rows.

    Args:
        where: Address of the new rows, for the message.
    """
    names = old.manifest.work.shard_names
    repeated = sorted(set(names) & set(new.shard_names))
    if not names or (new.shard_names and not repeated):
        return
    raise ConfigError(
        f"{old.path}: its shards mirror tars of images; "
        + (
            f"{where} has further images of tars that it mirrors already: {shorten(repeated)}. Put new images into new "
            "tars"
            if repeated
            else f"{where} mirrors none. Extract the new images from tars, with container webdataset"
        )
        + f"; or do not mirror tars any more: featstore convert {old.path} OUT --container zarr."
    )


def _version_folder(old: FeatureStore, new: FeatureStore) -> Path:
    """Temporary folder of the new version; a later run finds it again, and leftovers of this name are deleted."""
    both = f"{old.manifest.uuid} {old.manifest.created} {new.manifest.uuid} {new.fingerprint}"
    digest = hashlib.sha256(both.encode()).hexdigest()[:8]
    return old.path.parent / f"{TEMPORARY_PREFIX}{old.path.name}-append_{digest}"


def _create_or_reuse(folder: Path, plan: Composition) -> None:
    """Create the folder of the new version, or reuse it if it has the same contract."""
    try:
        open_or_create(folder, plan.manifest, plan.artefacts)
    except ManifestMismatch:  # of a run with other arguments
        shutil.rmtree(folder)
        open_or_create(folder, plan.manifest, plan.artefacts)


def kept_shards(old: Manifest, new: Manifest) -> range:
    """Shards whose files are kept: all full ones; none if ragged fields reserve more positions."""
    for name, record in new.fields.items():
        before = old.fields[name].encoding
        if isinstance(record.encoding, RaggedEncoding) and (
            record.encoding != before or new.work.shard_rows != old.work.shard_rows
        ):
            return range(0)
    if old.work.shard_sizes:
        return range(old.num_shards)
    return range(old.num_rows // old.work.shard_rows)


def link_shards(old: FeatureStore, folder: Path, manifest: Manifest) -> None:
    """Hard-link the files of kept shards into the new version, their ledger entries last."""
    backend = make_backend(old.path, old.manifest)
    with Disk(folder) as disk, refused(folder, 0):
        for shard in kept_shards(old.manifest, manifest):
            names = backend.object_names(shard)
            entry = entry_path(old.path, shard).relative_to(old.path).as_posix()
            pairs = [(old.path / name, folder / name) for name in [*names, entry]]
            if all(new.exists() and new.samefile(before) for before, new in pairs):
                continue
            (folder / entry).unlink(missing_ok=True)
            disk.make_folders([(folder / name).parent for name in names])
            try:
                for name in names:
                    _link(old.path / name, folder / name)
            except OSError as error:
                # No hard links on this file system, or too many of one file: the shard is written again.
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
                    raise
                continue
            sync_folders({(folder / name).parent for name in names}, disk.pool)
            _link(old.path / entry, folder / entry)
        sync_folder(folder / LEDGER_FOLDER)


def _link(path: Path, other: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise StoreWriteError(f"{path}: not a regular file. Fetch the store again.")
    other.unlink(missing_ok=True)  # of a run that was killed
    os.link(path, other)


def _copy_optional_files(store: Path, folder: Path) -> None:
    for name in OPTIONAL_FILES:
        path = store / name
        if path.is_file() and not path.is_symlink():
            write_bytes(folder / name, path.read_bytes())


def _replace(store: Path, folder: Path) -> None:
    """Exchange the folders of the new and the old version."""
    try:
        exchange(folder, store)
    except OSError as error:
        raise StoreWriteError(
            f"{store}: cannot be exchanged with {folder} in one step ({error.strerror}); the file system or "
            "system does not support it. The new version is complete there. While no process reads the store: "
            f"mv {store} {store}-old && mv {folder} {store}"
        ) from error

"""New images into a finished store: its rows stay where they are, the new ones come behind them, the version counts up.

The new version is built beside the store. Full shards are not copied, both versions name the same files (hard links);
only a last shard that was not full is written again, with the new rows. Then the two folders change names in one step.
So a kill leaves the old version or the new one, whole, and whoever reads the old one keeps what is mapped.
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

import numpy as np

from featstore.containers import make_backend
from featstore.containers.base import Rows
from featstore.derive.compatibility import (
    check_same_rows,
    common_artefacts,
    common_classes,
    common_fields,
    common_origin,
    renumbered,
)
from featstore.derive.composition import Axis, Composition, ShardMaker, artefact_bytes, ids_of
from featstore.derive.matching import samples_of
from featstore.derive.merge_rows import Duplicates, without_duplicates
from featstore.errors import ConfigError, ManifestMismatch, StoreWriteError, shorten
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
from featstore.format.ids import ids_sha256
from featstore.format.ledger import LEDGER_FOLDER, entry_path
from featstore.format.manifest import (
    Manifest,
    RaggedEncoding,
    SourceRecord,
    VersionRecord,
    WorkRecord,
)
from featstore.reading.store import FeatureStore
from featstore.writing.commit import open_or_create, remove_leftovers
from featstore.writing.fill import Progress, check_apart, make_store, no_progress

CARRIED = ("README.md", "card.html")
"""Files beside a store's own that go over into the new version. A signature does not: it is of the old one."""


@dataclass(frozen=True)
class Appended:
    """What became of a store.

    Attributes:
        manifest: of the store as it is; ``manifest.version`` says which one.
        rows: how many were added; 0 if all of them were there already.
        notes: what a user should hear, e.g. how many rows were left out.
    """

    manifest: Manifest
    rows: int
    notes: list[str] = field(default_factory=list)


def append(
    store: Path,
    new: Path,
    *,
    duplicates: Duplicates = "refuse",
    lease_s: float = 60,
    progress: Progress = no_progress,
) -> Appended:
    """Put the rows of a store behind those of another, finished one; go on with what was begun.

    Args:
        store: folder of the store that grows.
        new: folder of a complete store of other images, made alike (same teachers, views and fields).
        duplicates: see ``featstore.derive.merge_rows.Duplicates``. If the store has all images, nothing is done.
        lease_s: seconds without a sign of life after which another process counts as gone.
        progress: see ``featstore.writing.fill.Progress``; of the shards that are written.

    Raises:
        ManifestMismatch: the stores were not made alike.
        ConfigError: images repeat, or the tars that a store mirrors do.
        StoreIncomplete, ShardCorrupt: a store is not whole.
        StoreBusy: somebody writes to the store.
        StoreWriteError: the disk refused, or its file system cannot let two folders change names. The store is as it
            was.
    """
    with exclusive(store):
        return append_alone(store, new, duplicates=duplicates, lease_s=lease_s, progress=progress)


def append_alone(
    store: Path,
    new: Path,
    *,
    duplicates: Duplicates = "refuse",
    lease_s: float = 60,
    progress: Progress = no_progress,
) -> Appended:
    """As ``append``, for a caller that holds the store alone."""
    store = store.resolve()  # a link to a store: the store grows, the link stays
    check_apart(new, store)
    old, other = FeatureStore.open(store), FeatureStore.open(new)
    check_same_rows(old, other.manifest, where=other.path)
    rows, notes = without_duplicates(samples_of([old, other]), duplicates, all_known=True)
    if len(rows) == old.num_rows:
        remove_leftovers(store)
        return Appended(old.manifest, 0, notes)
    check_tars(old, other.manifest.work, where=other.path)
    plan, more = plan_append(old, other, rows)
    beside = _beside(old, other)
    _begin(beside, plan)
    _link_shards(old, beside, plan.manifest)
    make = ShardMaker(plan)
    manifest = make_store(
        beside, plan.manifest, plan.artefacts, make, lease_s=lease_s, progress=progress
    )
    _carry(store, beside)
    _replace(store, beside)
    remove_leftovers(store)
    return Appended(manifest, len(rows) - old.num_rows, notes + more)


def plan_append(old: FeatureStore, new: FeatureStore, rows: Rows) -> tuple[Composition, list[str]]:
    """Settle what the next version of a store will be.

    Args:
        old: the store that grows.
        new: the store whose rows are added.
        rows: (N,) rows of both, the new ones counted behind the old ones; begins with all old ones.

    Returns:
        The plan, and what a user should hear.

    Raises:
        ConfigError: names of classes or artefacts do not fit together.
    """
    stores, before, notes = (old, new), old.manifest, []
    everything = len(rows) == old.num_rows + new.num_rows
    axis = Axis(stores, range(len(rows)) if everything else rows)
    source = before.source
    classes, numbers = common_classes(stores) if source.has_labels else ((), [None, None])
    if new.manifest.source.has_labels and not source.has_labels:
        notes.append(f"{new.path}: its labels are left out, because {old.path} has none")
    labels = None
    if source.has_labels and (not new.manifest.source.has_labels or any(numbers)):
        parts = [renumbered(s.labels, table) for s, table in zip(stores, numbers, strict=True)]
        labels = np.concatenate(parts)[rows]
    fields = common_fields([before, new.manifest])
    artefacts, places = common_artefacts(stores)
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
    files = {name: artefact_bytes(places[name], [name])[name] for name in artefacts}
    sources = {name: (axis, name) for name in fields}
    return Composition(manifest, files, axis, sources, labels), notes


def _longer_work(old: FeatureStore, new: FeatureStore, rows: Rows) -> WorkRecord:
    """The old shards, and behind them new ones; of stores that mirror tars, one more for each new tar."""
    work, names = old.manifest.work, new.manifest.work.shard_names
    if not work.shard_sizes:
        return work
    added = rows[old.num_rows :] - old.num_rows
    if not work.shard_names:
        whole, rest = divmod(len(added), work.shard_rows)
        more = [work.shard_rows] * whole + [rest] * (rest > 0)
        return work.model_copy(update={"shard_sizes": (*work.shard_sizes, *more)})
    counts = np.bincount(new.manifest.shards_of(added), minlength=new.manifest.num_shards)
    kept = np.flatnonzero(counts).tolist()
    return WorkRecord(
        shard_rows=max(work.shard_rows, int(counts.max())),
        batch_size=work.batch_size,
        shard_sizes=(*work.shard_sizes, *counts[kept].tolist()),
        shard_names=(*work.shard_names, *(names[shard] for shard in kept)),
    )


def check_tars(old: FeatureStore, new: WorkRecord, *, where: object) -> None:
    """Refuse rows of tars that a store cannot mirror.

    Args:
        old: the store that grows.
        new: how the work of the new rows is cut.
        where: they are, for the message.

    Raises:
        ConfigError: the store mirrors tars of images, and the new rows are of none, or of some of those.
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
        + f"; or give up the tars: featstore convert {old.path} OUT --container zarr."
    )


def _beside(old: FeatureStore, new: FeatureStore) -> Path:
    """Where the new version is built: found again by a later run, and cleared away like all that is unfinished."""
    both = f"{old.manifest.uuid} {old.manifest.created} {new.manifest.uuid} {new.fingerprint}"
    digest = hashlib.sha256(both.encode()).hexdigest()[:8]
    return old.path.parent / f"{TEMPORARY_PREFIX}{old.path.name}-append_{digest}"


def _begin(beside: Path, plan: Composition) -> None:
    """Make the folder of the new version, or go on with it if it is of the same rows."""
    try:
        open_or_create(beside, plan.manifest, plan.artefacts)
    except ManifestMismatch:  # of a run with other arguments
        shutil.rmtree(beside)
        open_or_create(beside, plan.manifest, plan.artefacts)


def kept_shards(old: Manifest, new: Manifest) -> range:
    """Shards whose files stay as they are: all that are full.

    None where ragged fields get more room: their positions are counted through all shards.
    """
    for name, record in new.fields.items():
        before = old.fields[name].encoding
        if isinstance(record.encoding, RaggedEncoding) and (
            record.encoding != before or new.work.shard_rows != old.work.shard_rows
        ):
            return range(0)
    if old.work.shard_sizes:
        return range(old.num_shards)
    return range(old.num_rows // old.work.shard_rows)


def _link_shards(old: FeatureStore, beside: Path, manifest: Manifest) -> None:
    """Give the files of shards that stay a second name in the new version, their ledger entries last."""
    backend = make_backend(old.path, old.manifest)
    with Disk(beside) as disk, refused(beside, 0):
        for shard in kept_shards(old.manifest, manifest):
            names = backend.object_names(shard)
            entry = entry_path(old.path, shard).relative_to(old.path).as_posix()
            if all(_is_linked(old.path / name, beside / name) for name in [*names, entry]):
                continue
            (beside / entry).unlink(missing_ok=True)
            disk.make_folders([(beside / name).parent for name in names])
            try:
                for name in names:
                    _link(old.path / name, beside / name)
            except OSError as error:
                # Some file systems know no hard links, or not so many of one file: the shard is written again.
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
                    raise
                continue
            sync_folders({(beside / name).parent for name in names}, disk.pool)
            _link(old.path / entry, beside / entry)
        sync_folder(beside / LEDGER_FOLDER)


def _is_linked(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)


def _link(path: Path, other: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise StoreWriteError(f"{path}: not a regular file. Fetch the store again.")
    other.unlink(missing_ok=True)  # of a run that was killed
    os.link(path, other)


def _carry(store: Path, beside: Path) -> None:
    for name in CARRIED:
        path = store / name
        if path.is_file() and not path.is_symlink():
            write_bytes(beside / name, path.read_bytes())


def _replace(store: Path, beside: Path) -> None:
    """Let the new version take the store's name; the old one is left under the other."""
    try:
        exchange(beside, store)
    except OSError as error:
        raise StoreWriteError(
            f"{store}: cannot change names with {beside} in one step ({error.strerror}); this file system or system "
            f"cannot do that. The new version is complete there. When nobody reads the store: mv {store} {store}-old "
            f"&& mv {beside} {store}"
        ) from error

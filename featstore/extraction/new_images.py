"""Append new images to a finished store: find them, and extract them into a temporary store beside it.

The teacher sees new images only. Their store is hidden, and quantised fields use the scales of the store that grows;
when it is complete, its rows are appended (``featstore.derive.append``). An interrupted run is resumed by the same
command.
"""

# N rows of the store that grows

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from featstore.containers import make_backend
from featstore.derive.append import Appended, append_alone, check_tars
from featstore.derive.compatibility import check_same_rows, renumbered
from featstore.errors import (
    FeatstoreError,
    ManifestMismatch,
    MissingSamples,
    StoreError,
    StoreNotFound,
    shorten,
)
from featstore.extraction.config import ExtractConfig
from featstore.extraction.shards import TEACHER
from featstore.files.atomic import TEMPORARY_PREFIX
from featstore.files.locks import exclusive
from featstore.format.ids import content_sha256, ids_sha256
from featstore.format.ledger import ObjectRecord
from featstore.format.manifest import MANIFEST_NAME, Manifest, check_same_contract, read_manifest
from featstore.reading.store import FeatureStore
from featstore.sources import Source, SourcePart
from featstore.sources.load import read_image, reason_unreadable

STEP_ROWS = 4096  # images that are compared in one step


@dataclass(frozen=True)
class Growth:
    """A store to which new images are appended."""

    store: FeatureStore  # the store that grows
    config: ExtractConfig  # settings of the run that makes the temporary store
    source: Source  # the new images

    @property
    def beside(self) -> Path:
        """Folder of the temporary store of the new images."""
        return Path(self.config.store.path)

    def check(self, manifest: Manifest) -> None:
        """Check that the new rows fit the store; delete a temporary store that other settings have begun.

        Args:
            manifest: of the store of the new images.

        Raises:
            ManifestMismatch: the new rows would be made in another way than the store's.
            ConfigError: they are of tars that the store cannot mirror.
        """
        check_same_rows(self.store, manifest, where="these settings")
        check_tars(self.store, manifest.work, where=self.source.uri)
        if (self.beside / MANIFEST_NAME).exists():
            try:
                found = read_manifest(self.beside)
                check_same_contract(self.beside, found=found, expected=manifest)
            except ManifestMismatch:  # another batch size, say
                shutil.rmtree(self.beside)

    def finish(self) -> Appended:
        """Append the new rows to the store and delete the temporary store.

        Raises:
            StoreWriteError: see ``featstore.derive.append``.
        """
        return append_alone(self.store.path, self.beside, duplicates="keep")


@contextmanager
def growing(
    config: ExtractConfig, source: Source, accelerator: Accelerator
) -> Iterator[Growth | None]:
    """Lock a store for appending, after checking that its source differs by new images only.

    Args:
        config: Settings of the run; ``store.path`` is the store that grows.

    Yields:
        The store and its new images; None if no image is new.

    Raises:
        StoreNotFound, StoreIncomplete: there is no finished store.
        MissingSamples: images of the store are gone from the source, or have another content.
        StoreBusy: another process writes to the store.
    """
    path = Path(config.store.path)
    with ExitStack() as stack:
        outcome: list[Any] = [None]
        if accelerator.is_main_process:
            try:
                if not (path / MANIFEST_NAME).exists():
                    raise StoreNotFound(f"{path}: no store there to append to. Leave out --append.")
                stack.enter_context(exclusive(path))
                outcome[0] = find_new(source, FeatureStore.open(path), workers=config.workers)
            except FeatstoreError as error:
                outcome[0] = error
        broadcast_object_list(outcome)
        if isinstance(outcome[0], FeatstoreError):
            raise outcome[0]
        rows = outcome[0]
        yield _growth(config, source, FeatureStore.open(path), rows) if len(rows) else None


def _growth(config: ExtractConfig, source: Source, store: FeatureStore, rows: list[int]) -> Growth:
    part = SourcePart(source, rows)
    old = store.manifest
    # The name depends on the images: a later run finds it, and cleaning up knows the prefix.
    both = f"{old.uuid} {old.created} {ids_sha256(part.sample_ids)}"
    digest = hashlib.sha256(both.encode()).hexdigest()[:8]
    path = store.path.resolve()
    beside = path.parent / f"{TEMPORARY_PREFIX}{path.name}-new_{digest}"
    precision = config.teacher.precision
    if precision == "auto" and TEACHER in old.teachers:
        precision = old.teachers[TEACHER].precision
    changed = dataclasses.replace(
        config,
        store=dataclasses.replace(config.store, path=str(beside), container=old.container),
        teacher=dataclasses.replace(config.teacher, precision=precision),
    )
    return Growth(store, changed, part)


def find_new(source: Source, store: FeatureStore, *, workers: int) -> list[int]:
    """Return the positions, in a source, of images that are not in a store; compare the content of all others.

    Args:
        workers: Number of reading threads.

    Raises:
        MissingSamples: images of the store are gone from the source, or have another content; names them.
        SourceError: the disk or the network failed while images were read.
    """
    place = {sample_id: i for i, sample_id in enumerate(source.sample_ids)}
    gone = [sample_id for sample_id in store.sample_ids if sample_id not in place]
    if gone:
        raise MissingSamples(
            f"{source.uri}: {len(gone):,} of {store.num_rows:,} images of {store.path} are not there any more: "
            f"{shorten(gone)}. Put the files back under their names, or copy the other "
            "rows into a new store first (featstore subset)."
        )
    known = [place[sample_id] for sample_id in store.sample_ids]

    def problem(row: int) -> str:
        stored = store.content_sha256[row]
        if not stored.any():  # it could not be read then either
            return ""
        try:
            same = content_sha256(read_image(source, known[row])) == stored.tobytes()
        except OSError as error:
            return reason_unreadable(error)
        return "" if same else "another content"

    changed = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(desc="compare", total=store.num_rows, unit=" images", leave=False) as bar,
    ):
        for start in range(0, store.num_rows, STEP_ROWS):
            rows = range(start, min(start + STEP_ROWS, store.num_rows))
            for row, wrong in zip(rows, pool.map(problem, rows), strict=True):
                changed += [f"{store.sample_ids[row]} ({wrong})"] if wrong else []
                bar.update()
    if changed:
        raise MissingSamples(
            f"{source.uri}: {len(changed):,} images are not what {store.path} was made of: {shorten(changed)}. Put the "
            "old files back, or the new ones under other names."
        )
    mask = np.ones(len(source), dtype=np.bool_)
    mask[known] = False
    return [int(row) for row in np.flatnonzero(mask)]


def in_stored_order(source: Source, path: Path, url: str = "") -> Source:
    """Return a source in the order of a store's rows, where both have the same images in different orders.

    Classes are numbered as in the store too.

    Args:
        path: Folder of the store; it need not exist or be complete.
        url: Of the store, if it is in a bucket; ``path`` is then its local copy.

    Returns:
        The source unchanged if there is no such store.
    """
    if not (path / MANIFEST_NAME).exists():
        return source
    try:
        store = FeatureStore.open(path, allow_incomplete=True)
        wanted = store.manifest.source
        same_classes = source.class_names == wanted.class_names
        if wanted.num_samples != len(source) or (
            same_classes and ids_sha256(source.sample_ids) == wanted.ids_sha256
        ):
            return source
        known = FeatureStore.open(url, allow_incomplete=True).sample_ids if url else None
        ids = list(_probable_ids(store)) if known is None else known
    except StoreError:  # reported when the store is opened for writing
        return source
    place = {sample_id: i for i, sample_id in enumerate(source.sample_ids)}
    rows = [place.get(sample_id, -1) for sample_id in ids]
    # The remaining images are tried in their order; the hash decides whether it is right.
    rest = iter(sorted(set(range(len(source))).difference(rows)))
    rows = [next(rest, -1) if row < 0 else row for row in rows]
    if sorted(rows) != list(range(len(source))):
        return source
    part = SourcePart(source, rows)
    if ids_sha256(part.sample_ids) != wanted.ids_sha256:
        return source
    if sorted(part.class_names) == sorted(wanted.class_names):
        table = [wanted.class_names.index(name) for name in part.class_names]
        part.class_names = wanted.class_names
        if part.labels is not None:
            part.labels = renumbered(part.labels, table)
    return part


def _probable_ids(store: FeatureStore) -> Iterator[str]:
    """Yield the id of every row, "" if unknown; of removed shards, the ids in their files, unchecked."""
    backend = make_backend(store.path, store.manifest)
    for shard in range(store.manifest.num_shards):
        try:
            if shard in store.shards:
                objects = dict(store.entry(shard).objects)
            else:
                names = backend.object_names(shard)
                names = [name for name in names if name.startswith(("sample_id/", "shards/"))]
                objects = {name: _as_it_is(store.path / name) for name in names}
            yield from map(str, backend.read_shard(shard, "sample_id", objects))
        except (StoreError, OSError):
            yield from [""] * len(store.manifest.shard_range(shard))


def _as_it_is(path: Path) -> ObjectRecord:
    """Return a record that matches the file as it is."""
    data = path.read_bytes()
    crc = google_crc32c.value(data)
    return ObjectRecord(bytes=len(data), block_bytes=max(1, len(data)), crc32c=f"{crc:08x}")

"""Verify a store (every byte is as written, and all parts agree with each other), and repair it.

``verify`` reads everything, one column of one shard at a time, or a sample of blocks at a cost that does not depend on
the size of the store. ``repair`` removes exactly the damaged shards from the ledger, so that the next extraction
makes them again, and writes anew what needs no teacher.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featstore.containers import Backend, make_backend
from featstore.containers.metadata import difference, metadata_files
from featstore.errors import ManifestMismatch, ShardCorrupt, StoreError, shorten
from featstore.files.array_types import Rows
from featstore.files.atomic import TEMPORARY_PREFIX, refused, write_bytes
from featstore.files.locks import LOCK_NAME, PUBLISH_NAME, exclusive
from featstore.files.progress import Progress
from featstore.files.untrusted import check_real_folder, plain_size, read_plain
from featstore.format.artefacts import artefact_file, artefact_path, check_artefact, read_artefact
from featstore.format.file_names import EXTRAS
from featstore.format.ledger import (
    COMPLETE_NAME,
    ENTRY,
    LEDGER_FOLDER,
    CompleteRecord,
    complete_path,
    entry_path,
    mark_complete,
    read_complete,
    read_entry,
    remove_entries,
)
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from featstore.format.manifest_records import Int8Encoding
from featstore.maintenance.verify_shard import (
    MENDABLE,
    Damage,
    ShardFindings,
    belongs_to_shard,
    check_entry,
    check_object,
    examine_shard,
    problem_of,
)
from featstore.maintenance.verify_totals import Totals
from featstore.writing.leases import LEASE_FOLDER

SHOWN_IDS = 5
MOST_LOST = 1000
"""At most so many missing entries of a store that is marked as complete are listed one by one."""


@dataclass
class VerifyReport:
    """Findings of ``verify``.

    Attributes:
        num_shards: of the store when it is complete.
        shards: how many were checked; with a sample, in how many the blocks lay.
        missing: shards that were not extracted yet.
        marked: whether the store is marked as complete.
        blocks: blocks compared with their checksums.
        bytes: bytes compared with their checksums.
        sampled: whether only a sample was looked at.
        damages: everything that is not as it should be.
        foreign: files in the store that are not of it.
        leftovers: temporary files of a killed run; the next run removes them.
        notes: remarks that are not damage.
    """

    path: str | Path
    fingerprint: str
    rows: int
    num_shards: int
    shards: int = 0
    missing: Sequence[int] = ()
    marked: bool = False
    blocks: int = 0
    bytes: int = 0
    sampled: bool = False
    damages: list[Damage] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing that was checked is damaged."""
        return not self.damages

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return not self.missing

    @property
    def damaged_shards(self) -> list[int]:
        """Numbers of the shards to make again, ascending."""
        return sorted({item.shard for item in self.damages if item.shard is not None})

    @property
    def likely_share(self) -> float:
        """Share of damaged blocks that a sound sample of this size misses with a probability of 5 %."""
        return float(1 - 0.05 ** (1 / self.blocks)) if self.blocks else 1.0


def verify(
    path: str | Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a store against its manifest and its ledger; nothing is changed.

    Args:
        sample: number of random blocks to check instead of everything.
    """
    path = Path(path)
    manifest = read_manifest(path)
    backend = make_backend(path, manifest)
    report = VerifyReport(path, manifest.fingerprint, manifest.num_rows, manifest.num_shards)
    report.sampled = sample is not None
    report.damages += _check_metadata(path, manifest)
    report.damages += _check_artefacts(path, manifest)
    mark = _read_mark(report)
    present: Sequence[int] = range(manifest.num_shards)
    if mark is None or sample is None:
        present = _list_shards(report)
    report.marked = mark is not None
    if sample is not None:
        _check_sample(report, backend, present, sample, seed, progress)
    else:
        _check_all(report, backend, present, mark, workers, progress)
        _list_files(report, backend)
    return report


def repair(
    path: str | Path, *, workers: int = 1, say: Callable[[str], None] | None = None
) -> list[int]:
    """Remove the ledger entries of damaged shards, so that the next extraction makes them again.

    Metadata of the container and the mark of a complete store are written anew. Objects stay until they are replaced.

    Raises:
        StoreError: something is damaged that only a copy of the store can replace; nothing was changed.
    """
    path = Path(path)
    manifest = read_manifest(path)
    with exclusive(path):
        report = verify(path, workers=workers)
        for damage in report.damages:
            if say is not None:
                say(str(damage))
        beyond = [damage for damage in report.damages if damage.kind not in MENDABLE]
        if beyond:
            raise StoreError(
                f"{path}: {len(beyond)} damages cannot be repaired: {shorten(beyond, 3)}. Nothing was changed."
            )
        files = metadata_files(manifest)
        for name in sorted({item.object for item in report.damages if item.kind == "metadata"}):
            for folder in (path / parent for parent in Path(name).parents if parent.name):
                with refused(folder, 0):
                    check_real_folder(folder)
            write_bytes(path / name, files[name])
        shards = report.damaged_shards
        if shards:
            remove_entries(path, shards)
        elif report.complete and not report.marked:
            mark_complete(path, (read_entry(path, shard) for shard in range(manifest.num_shards)))
        elif not report.marked:
            complete_path(path).unlink(missing_ok=True)
    return shards


def _check_metadata(store: Path, manifest: Manifest) -> Iterator[Damage]:
    for name, expected in metadata_files(manifest).items():
        try:
            # Another library may spell it twice as long, not more.
            found = read_plain(store, name, most_bytes=2 * len(expected) + 2**16)
            problem = difference(found, expected)
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        if problem:
            yield Damage(kind="metadata", problem=problem, object=name)


def _check_artefacts(store: Path, manifest: Manifest) -> Iterator[Damage]:
    channels = {
        field.encoding.channels: field.shape[-1]
        for field in manifest.fields.values()
        if isinstance(field.encoding, Int8Encoding) and field.encoding.channels
    }
    for name in sorted(manifest.artefacts):
        path = artefact_path(store, name)
        problem = ""
        try:
            if name not in channels:
                check_artefact(store, manifest, name)
                continue
            tensors = read_artefact(store, manifest, name)
        except ShardCorrupt as error:
            problem = problem_of(error, path)
        else:
            shapes = {key: tensors[key].shape for key in ("scale", "offset") if key in tensors}
            if shapes != dict.fromkeys(("scale", "offset"), (channels[name],)):
                problem = (
                    f"holds {shapes}, expected a scale and an offset for {channels[name]} channels"
                )
            elif not (
                np.isfinite(tensors["offset"]).all()
                and np.isfinite(tensors["scale"]).all()
                and (tensors["scale"] > 0).all()
            ):
                problem = "scales of channels must be positive, offsets finite"
        if problem:
            where = path.relative_to(store).as_posix()
            yield Damage(kind="artefact", problem=problem, object=where)


def _read_mark(report: VerifyReport) -> CompleteRecord | None:
    store = Path(report.path)
    path = complete_path(store)
    where = path.relative_to(store).as_posix()
    try:
        return read_complete(store, report.num_shards)
    except ManifestMismatch:
        problem = f"not the {MANIFEST_NAME} that the store was completed with ({where})"
        report.damages.append(Damage(kind="manifest", problem=problem, object=MANIFEST_NAME))
    except ShardCorrupt as error:
        report.damages.append(Damage(kind="mark", problem=problem_of(error, path), object=where))
    return None


def _list_shards(report: VerifyReport) -> list[int]:
    """List shards that have an entry; only names in the folder of the ledger are read."""
    store = Path(report.path)
    folder = store / LEDGER_FOLDER
    try:
        check_real_folder(folder)
        names = sorted(os.listdir(folder))  # noqa: PTH208  # ten times as fast
    except OSError as error:
        names = []
        if folder.is_symlink() or not isinstance(error, FileNotFoundError):
            problem = f"cannot be listed ({error.strerror})"
            report.damages.append(Damage(kind="ledger", problem=problem, object=LEDGER_FOLDER))
    numbers = [int(name[:-5]) for name in names if ENTRY.fullmatch(name)]
    for number in numbers:
        where = entry_path(store, number).relative_to(store).as_posix()
        if number >= report.num_shards:
            problem = f"lies beyond the {report.num_shards} shards of the manifest"
            report.damages.append(Damage(kind="ledger", problem=problem, object=where))
    return [number for number in numbers if number < report.num_shards]


def _missing(num_shards: int, present: Sequence[int]) -> Rows:
    there = np.zeros(num_shards, dtype=np.bool_)
    there[np.asarray(present, dtype=np.int64)] = True
    return np.flatnonzero(~there)


def _check_all(
    report: VerifyReport,
    backend: Backend,
    present: Sequence[int],
    mark: CompleteRecord | None,
    workers: int,
    progress: Progress | None,
) -> None:
    missing = _missing(report.num_shards, present)
    shards = present
    if mark is None:
        report.missing = missing.tolist()
    elif len(missing):
        # Marked as complete, so its shards were there: what has no entry now has lost it.
        shards = sorted([*present, *missing[:MOST_LOST].tolist()])
        if len(missing) > MOST_LOST:
            problem = f"{len(missing) - MOST_LOST:,} more entries are missing"
            report.damages.append(Damage(kind="ledger", problem=problem, object=LEDGER_FOLDER))
    totals = Totals(backend)
    odd = unbound = 0
    examples: list[str] = []
    for done, found in enumerate(_in_order(backend, shards, workers), start=1):
        totals.add(found)
        report.shards += 1
        report.blocks += found.blocks
        report.bytes += found.bytes
        report.damages += found.damages
        odd += len(found.odd_ids)
        examples += found.odd_ids[: SHOWN_IDS - len(examples)]
        unbound += found.unbound
        if progress is not None:
            progress(done, len(shards))
    if odd:
        report.notes.append(
            f"{odd:,} sample ids hold control characters or lead out of a folder: {shorten(examples)}. Do not make "
            "them names of files, and do not print them as they are."
        )
    if unbound:
        report.notes.append(
            f"{unbound:,} valid rows have no content hash: nothing binds them to an image."
        )
    report.damages += totals.repeated_ids()
    if not report.damaged_shards and not report.missing:
        # Sums over the sound shards alone would only say the same again.
        report.damages += totals.differences(mark)


def _in_order(backend: Backend, shards: Sequence[int], workers: int) -> Iterator[ShardFindings]:
    """Check shards in several threads, a bounded number ahead, so that memory is bounded."""
    if workers <= 1:
        yield from (examine_shard(backend, shard) for shard in shards)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(examine_shard, backend, s) for s in shards[: 2 * workers])
        try:
            for shard in [*shards[2 * workers :], *[None] * len(waiting)]:
                done = waiting.popleft().result()
                if shard is not None:
                    waiting.append(pool.submit(examine_shard, backend, shard))
                yield done
        finally:
            for future in waiting:
                future.cancel()


def draw_blocks(num_shards: int, sample: int, seed: int) -> Iterator[tuple[int, float, float]]:
    """Draw random blocks: a shard, one of its objects, one of its blocks (as shares of 1), ascending by shard."""
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.integers(num_shards, size=sample))
    draws = generator.random((sample, 2))
    for shard, (which, where) in zip(chosen.tolist(), draws.tolist(), strict=True):
        yield shard, which, where


def _check_sample(
    report: VerifyReport,
    backend: Backend,
    present: Sequence[int],
    sample: int,
    seed: int,
    progress: Progress | None,
) -> None:
    """Check random blocks: a shard, one of its objects, one of its blocks, each with equal probability."""
    if not isinstance(present, range):
        report.missing = _missing(report.num_shards, present).tolist()
    if not present:
        return
    found = ShardFindings(-1)
    for i, (place, which, where) in enumerate(draw_blocks(len(present), sample, seed)):
        shard = present[place]
        if found.shard != shard:
            found = ShardFindings(shard)
            report.damages += check_entry(backend, shard, found)
            report.shards += 1
        names = sorted(found.entry.objects) if found.entry is not None else []
        name = names[int(which * len(names))] if names else ""
        if found.entry is not None and name in backend.object_names(shard):
            record = found.entry.objects[name]
            block = int(where * record.num_blocks)
            blocks = range(block, min(block + 1, record.num_blocks))
            for damage in check_object(backend, shard, name, record, blocks):
                if damage not in report.damages:
                    report.damages.append(damage)
            report.blocks += len(blocks)
            report.bytes += sum(len(record.block(number)) for number in blocks)
        if progress is not None:
            progress(i + 1, sample)


def _list_files(report: VerifyReport, backend: Backend) -> None:
    """List files that are not of the format; they are reported, and harmless."""
    manifest, store = backend.manifest, backend.store
    known = {MANIFEST_NAME, LOCK_NAME, PUBLISH_NAME, f"{LEDGER_FOLDER}/{COMPLETE_NAME}"}
    known.update(metadata_files(manifest))
    known.update(map(artefact_file, manifest.artefacts))
    named = {damage.object for damage in report.damages}
    root = str(store)
    for folder, folders, files in os.walk(root):
        base = folder[len(root) + 1 :]
        if base == LEASE_FOLDER:
            folders.clear()
            continue
        links = [name for name in folders if os.path.islink(f"{folder}/{name}")]  # noqa: PTH114
        for file in [*files, *links]:
            name = f"{base}/{file}" if base else file
            if file.startswith(TEMPORARY_PREFIX):
                report.leftovers.append(name)
            elif name in EXTRAS:
                with suppress(OSError):
                    plain_size(store, name)
                    continue
                report.foreign.append(name)
            elif name not in known and name not in named and not belongs_to_shard(backend, name):
                report.foreign.append(name)
    report.foreign.sort()
    report.leftovers.sort()

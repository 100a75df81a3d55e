"""Check a published store where it is: every byte, or a sample of blocks, against the checksums of its ledger.

Nothing is written to disk. What the bytes mean (finite features, labels within the classes, unique ids) is checked by
``featstore.maintenance.verify`` on a copy; equal checksums mean that a sound copy was published.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import google_crc32c

from featstore.containers import make_backend
from featstore.containers.metadata import difference, metadata_files
from featstore.errors import RemoteNotFound, ShardCorrupt, shorten
from featstore.files.progress import Progress
from featstore.files.untrusted import MOST_JSON_BYTES
from featstore.format.artefacts import artefact_file
from featstore.format.ledger import ObjectRecord, ShardRecord, entry_name
from featstore.maintenance.verify import VerifyReport, draw_blocks
from featstore.maintenance.verify_shard import Damage, Kind
from featstore.places.base import Place, Retry, TooLong
from featstore.places.open_place import open_place
from featstore.reading.cached.published_store import (
    MARK_NAME,
    Contents,
    parse_published_entry,
    remote_contents,
)
from featstore.sharing.comparisons import BlockSums, ComparingSink, Sha256Sum
from featstore.sharing.jobs import Countdown, Job, run_jobs
from featstore.sharing.progress import explain_system_errors

REMEDY = "push it again from a sound copy: featstore push STORE URL"


def verify_url(
    url: str,
    *,
    sample: int | None = None,
    seed: int = 0,
    jobs: int = 8,
    retry: Retry = Retry(),  # noqa: B008
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a published store.

    Args:
        sample: Number of random blocks to check instead of everything.
        progress: Called with (done, total): shards, or blocks of a sample.
    """
    with explain_system_errors("verify"):
        place = open_place(url, retry=retry, options=options)
        return _Check(place, remote_contents(place), progress).run(sample, seed, jobs)


def check_there(place: Place, contents: Contents, *, threads: int) -> None:
    """Check a published store."""
    damages = _Check(place, contents, None).run(None, 0, threads).damages
    if damages:
        raise ShardCorrupt(
            f"{place.url}: {len(damages):,} files are damaged: {shorten(damages, 3)}. Run the same command with "
            "--replace."
        )


class _Check:
    def __init__(self, place: Place, contents: Contents, progress: Progress | None) -> None:
        manifest = contents.manifest
        self.place, self.contents, self.progress = place, contents, progress
        self.report = VerifyReport(
            place.url, manifest.fingerprint, manifest.num_rows, manifest.num_shards
        )
        self.report.marked = True
        self.report.notes.append(
            "checked at the place: bytes, not their meaning; pull a copy and verify that for all checks"
        )
        self.backend = make_backend(Path(), manifest)
        self._entries, self._waiting = hashlib.sha256(), dict[int, bytes]()
        self._done, self._lock = 0, threading.Lock()

    def run(self, sample: int | None, seed: int, threads: int) -> VerifyReport:
        """Check everything, or a sample."""
        report, mark = self.report, self.contents.mark
        report.sampled = sample is not None
        run_jobs(self._jobs(sample, seed), threads=threads, stop=self.place.stop)
        found = self._entries.hexdigest()
        if sample is None and not report.damages and mark.entries_sha256 not in ("", found):
            self._damage("ledger", "not the entries that the store was completed with", MARK_NAME)
        report.damages.sort(
            key=lambda item: (item.shard if item.shard is not None else -1, item.object)
        )
        return report

    def _jobs(self, sample: int | None, seed: int) -> Iterator[Job]:
        manifest = self.contents.manifest
        for name, made in metadata_files(manifest).items():
            yield partial(self._metadata, name, made)
        for name, record in manifest.artefacts.items():
            yield partial(
                self._whole, artefact_file(name), record.bytes, Sha256Sum(record.sha256), "artefact"
            )
        if sample is None:
            yield from (partial(self._shard, shard) for shard in range(manifest.num_shards))
            return
        draws: dict[int, list[tuple[float, float]]] = {}
        for shard, which, where in draw_blocks(manifest.num_shards, sample, seed):
            draws.setdefault(shard, []).append((which, where))
        yield from (partial(self._sample, shard, found, sample) for shard, found in draws.items())

    def _metadata(self, name: str, made: bytes) -> list[Job]:
        try:
            problem = difference(self.place.read(name, most_bytes=2 * len(made) + 2**16), made)
        except (RemoteNotFound, TooLong) as error:
            problem = str(error)
        if problem:
            self._damage("metadata", problem, name)
        return []

    def _whole(
        self, name: str, size: int, sums: ComparingSink, kind: Kind, shard: int | None = None
    ) -> list[Job]:
        """Read a file to its end."""
        try:
            self.place.stream(name, sums, most_bytes=size)
            problem = sums.problem()
        except (RemoteNotFound, TooLong, ShardCorrupt) as error:
            problem = str(error.args[0])
        if problem:
            self._damage(kind, problem, name, shard)
        return []

    def _entry(self, shard: int) -> tuple[ShardRecord | None, bytes]:
        name = entry_name(shard)
        data = b""
        try:
            data = self.place.read(name, most_bytes=MOST_JSON_BYTES)
            return parse_published_entry(data, self.backend, shard, self.place.url), data
        except (RemoteNotFound, TooLong, ShardCorrupt) as error:
            self._damage("ledger", str(error.args[0]), name, shard)
        return None, data

    def _shard(self, shard: int) -> list[Job]:
        entry, data = self._entry(shard)
        with self._lock:
            self._waiting[shard] = data
            while (following := self._done) in self._waiting:
                self._entries.update(self._waiting.pop(following))
                self._done += 1
        objects = [] if entry is None else sorted(entry.objects.items())
        left = Countdown(len(objects), self._count_shard)
        return [partial(self._object, shard, name, record, left) for name, record in objects]

    def _object(self, shard: int, name: str, record: ObjectRecord, left: Countdown) -> list[Job]:
        sums = BlockSums(self.backend, shard, name, record)
        self._whole(name, record.bytes, sums, "shard", shard)
        with self._lock:
            self.report.blocks += record.num_blocks
            self.report.bytes += record.bytes
        left.count_down()
        return []

    def _sample(self, shard: int, draws: list[tuple[float, float]], sample: int) -> list[Job]:
        entry, _ = self._entry(shard)
        objects = [] if entry is None else sorted(entry.objects.items())
        for which, where in draws:
            if objects:
                name, record = objects[int(which * len(objects))]
                self._block(shard, name, record, int(where * record.num_blocks))
        with self._lock:
            self.report.shards += 1
            self._done += len(draws)
            if self.progress is not None:
                self.progress(self._done, sample)
        return []

    def _block(self, shard: int, name: str, record: ObjectRecord, number: int) -> None:
        if not record.num_blocks:
            return
        part, problem = record.block(number), ""
        try:
            found = self.place.read_part(name, part)
            crc = google_crc32c.value(found)
            if len(found) < len(part):
                problem = f"ends after {part.start + len(found):,} bytes, expected {record.bytes:,}"
            elif crc != record.crc(number):
                column, rows = self.backend.holds(shard, name, part.start, part.stop)
                problem = (
                    f'rows {rows.start}-{rows.stop - 1}, column "{column}": crc32c {crc:08x}, expected '
                    f"{record.crc(number):08x}"
                )
        except RemoteNotFound:
            problem = "missing"
        if problem:
            self._damage("shard", problem, name, shard)
        with self._lock:
            self.report.blocks += 1
            self.report.bytes += len(part)

    def _count_shard(self) -> None:
        with self._lock:
            self.report.shards += 1
            if self.progress is not None:
                self.progress(self.report.shards, self.report.num_shards)

    def _damage(self, kind: Kind, problem: str, name: str, shard: int | None = None) -> None:
        damage = Damage(
            kind=kind, problem=problem.rstrip("."), object=name, shard=shard, remedy=REMEDY
        )
        with self._lock:
            if damage not in self.report.damages:
                self.report.damages.append(damage)

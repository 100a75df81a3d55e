"""Download the files of a store into a local folder; each gets its name when its checksums are right."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from featstore.containers import make_backend
from featstore.containers.block_checksums import damaged_blocks
from featstore.containers.metadata import difference, metadata_files
from featstore.errors import RemoteNotFound, ShardCorrupt
from featstore.files.atomic import TEMPORARY_PREFIX, refused, write_bytes
from featstore.files.untrusted import (
    MOST_JSON_BYTES,
    check_real_folder,
    open_plain,
    plain_size,
    read_plain,
)
from featstore.format.artefacts import artefact_file
from featstore.format.ledger import ObjectRecord, ShardRecord, entry_name
from featstore.places.base import AccessRefused, FileSink, NotFollowed, Place, Sink, TooLong
from featstore.reading.cached.published_store import (
    EXTRAS,
    MARK_NAME,
    Contents,
    parse_published_entry,
    retry_damaged,
)
from featstore.sharing.comparisons import BlockSums, ComparingSink, Sha256Sum
from featstore.sharing.jobs import Countdown, Job
from featstore.sharing.progress import Meter

ARRIVING = "-arriving"  # end of the name of a file that is being fetched

ADVICE = (
    "The copy there is damaged, or the network damages it: ask its publisher to run featstore push again, which "
    "compares and repairs it."
)


@dataclass
class Receiver:
    """Fetches the files of a store that a folder lacks."""

    place: Place
    contents: Contents
    folder: Path  # destination; held alone by the caller
    meter: Meter
    # an older store on the same disk; objects that are the same are linked from there
    donor: Path | None = None
    trust_entries: bool = False  # entries of the ledger in the folder come from this very store
    dry_run: bool = False  # only count what would be fetched; nothing is written

    def __post_init__(self) -> None:
        self._backend = make_backend(self.folder, self.contents.manifest)
        self._announced = 0
        self._lock = threading.Lock()

    def jobs(
        self, shards: Iterable[int], wanted: Callable[[str], bool] | None = None
    ) -> Iterator[Job]:
        """Artefacts and shards; all other files but manifest and mark too, if all objects are wanted.

        Args:
            wanted: Whether an object is needed, by its name; None for the whole store.
        """
        if wanted is None:
            for name, made in metadata_files(self.contents.manifest).items():
                yield partial(self._metadata, name, made)
            for name, most_bytes in EXTRAS.items():
                yield partial(self._extra, name, most_bytes)
        for name in self.contents.manifest.artefacts:
            yield partial(self._artefact, name)
        yield from self.shard_jobs(shards, wanted or (lambda name: True))

    def shard_jobs(self, shards: Iterable[int], wanted: Callable[[str], bool]) -> Iterator[Job]:
        """Shards: the ledger's entry of each first, then the objects that are wanted."""
        for shard in shards:
            yield partial(self._shard, shard, wanted)

    def finish(self) -> None:
        """Compare all entries together with the mark of the complete store, and remove files that were not completed.

        Raises:
            ShardCorrupt: one is not the one that the store was completed with.
        """
        expected = self.contents.mark.entries_sha256
        if expected and entries_sha256(self.folder, self.contents.mark.shards) != expected:
            raise ShardCorrupt(
                f"{self.place.url}: the entries of its ledger are not those that {MARK_NAME} was written for. If it "
                "is being pushed now, run the same command again afterwards."
            )
        for path in self.folder.glob(f"{TEMPORARY_PREFIX}*{ARRIVING}"):
            path.unlink(missing_ok=True)

    def keep(self, name: str, data: bytes, *, there: bool = False) -> None:
        """Write a small file, unless it is in the folder, and count it; ``there``: it was not transferred."""
        found = b""
        with suppress(OSError):
            found = read_plain(self.folder, name)
        if found != data and not self.dry_run:
            make_folders(self.folder, self.folder / name)
            write_bytes(self.folder / name, data)
        if found == data or there:
            self.meter.announce(len(data))
            self.meter.skip(len(data))
        else:
            self.meter.arrive(len(data))

    def _shard(self, shard: int, wanted: Callable[[str], bool]) -> list[Job]:
        entry, data = self._entry(shard)
        self._announce(sum(record.bytes for record in entry.objects.values()), shard)
        names = sorted(name for name in entry.objects if wanted(name))
        for name in entry.objects.keys() - names:
            self.meter.announce(-entry.objects[name].bytes)
        left = Countdown(len(names), lambda: self.keep(entry_name(shard), data))
        return [partial(self._object, shard, name, entry.objects[name], left) for name in names]

    def _entry(self, shard: int) -> tuple[ShardRecord, bytes]:
        name = entry_name(shard)
        if self.trust_entries:
            with suppress(OSError, ShardCorrupt):
                data = read_plain(self.folder, name)
                return parse_published_entry(data, self._backend, shard, self.place.url), data

        def read() -> tuple[ShardRecord, bytes]:
            try:
                data = self.place.read(name, most_bytes=MOST_JSON_BYTES)
            except RemoteNotFound:
                raise ShardCorrupt(
                    f"{self.place.url}/{name}: missing, though the store is marked as complete."
                ) from None
            return parse_published_entry(data, self._backend, shard, self.place.url), data

        return retry_damaged(read, self.meter.damage, ADVICE)

    def _announce(self, size: int, shard: int) -> None:
        """Refuse entries that add up to more than the mark says: the disk would fill."""
        with self._lock:
            self._announced += size
            total = self._announced
        if total > self.contents.mark.bytes:
            raise ShardCorrupt(
                f"{self.place.url}/{entry_name(shard)}: with this entry the shards have {total:,} bytes or more, and "
                f"the whole store should have {self.contents.mark.bytes:,}. Ask its publisher."
            )

    def _object(self, shard: int, name: str, record: ObjectRecord, left: Countdown) -> list[Job]:
        if has_object(self.folder, name, record) or self._link(name, record):
            self.meter.skip(record.bytes)
        else:
            comparison = partial(BlockSums, self._backend, shard, name, record)
            self._fetch(name, record.bytes, comparison, f"shard {shard}: ")
        left.count_down()
        return []

    def _link(self, name: str, record: ObjectRecord) -> bool:
        """Take an object from the older store, if it has the same; until that one is removed, both have it."""
        if self.donor is None or not has_object(self.donor, name, record):
            return False
        path = self.folder / name
        if self.dry_run:
            return True
        make_folders(self.folder, path)
        with suppress(OSError):  # a file system without links, for one: then it is fetched
            os.link(self.donor / name, path)
            return True
        return False

    def _artefact(self, artefact: str) -> list[Job]:
        name, record = artefact_file(artefact), self.contents.manifest.artefacts[artefact]
        with suppress(OSError):
            self.meter.announce(record.bytes)
            if _sha256(self.folder, name) == record.sha256:
                self.meter.skip(record.bytes)
                return []
        self._fetch(name, record.bytes, partial(Sha256Sum, record.sha256))
        return []

    def _fetch(
        self, name: str, size: int, comparison: Callable[[Sink], ComparingSink], what: str = ""
    ) -> None:
        """Fetch a file and compare it; what arrived of it in an earlier run, and is right, is not fetched again."""
        if self.dry_run:
            self.meter.arrive(size)
            return
        arrival = _Arrival(self.folder, name, self.meter)
        first = -1  # bytes that an earlier run has left

        def fetch() -> None:
            nonlocal first
            with arrival as file:
                sums = comparison(FileSink(file))
                kept = sums.resume(arrival.path)
                first = kept if first < 0 else first
                arrival.keep(file, kept)
                try:
                    if kept < size:
                        self.place.stream(
                            name, sums, most_bytes=size, start=kept, progress=arrival.count
                        )
                    problem = sums.problem()
                except ShardCorrupt as error:
                    problem = error.args[0]
                except RemoteNotFound:
                    problem = f"{what}missing"
                except TooLong:
                    problem = f"{what}longer than {size:,} bytes"
                if problem:
                    if isinstance(sums, Sha256Sum):
                        arrival.keep(file, 0)
                    raise ShardCorrupt(f"{self.place.url}/{name}: {problem}.")
                arrival.publish(file)

        retry_damaged(fetch, self.meter.damage, ADVICE)
        self.meter.arrive(size, max(first, 0))

    def _metadata(self, name: str, made: bytes) -> list[Job]:
        """Kept as it is there if it says what the manifest asks for, so that a signature holds; else made here."""
        for folder in (self.folder, self.donor or self.folder):
            with suppress(OSError):
                found = read_plain(folder, name)
                if not difference(found, made):
                    self.keep(name, found, there=True)
                    return []
        try:
            found = self.place.read(name, most_bytes=4 * len(made) + 2**16)
            problem = difference(found, made)
        except (RemoteNotFound, AccessRefused, TooLong) as error:
            found, problem = b"", str(error)
        if problem:
            self.meter.note(f"{name} was made anew from the manifest; at the place: {problem}")
        self.keep(name, made if problem else found)
        return []

    def _extra(self, name: str, most_bytes: int) -> list[Job]:
        """Card or signature: no checksum covers it, so it must come from this very place."""
        if self.dry_run:
            size = self.place.size(name)
            if size is not None:
                self.meter.arrive(size)
            return []
        arrival = _Arrival(self.folder, name, self.meter)
        try:
            with arrival as file:
                arrival.keep(file, 0)
                size = self.place.stream(
                    name,
                    FileSink(file),
                    most_bytes=most_bytes,
                    same_host=True,
                    progress=arrival.count,
                )
                file.flush()
                if _same(arrival.path, self.folder, name):
                    self.meter.announce(size)
                    self.meter.skip(size, compared=True)
                elif size:
                    self.meter.announce(size)
                    arrival.publish(file)
                    self.meter.arrive(size)
        except NotFollowed as error:
            self.meter.note(f"{name} was left out: {error}")
        except (RemoteNotFound, AccessRefused):
            pass
        arrival.path.unlink(missing_ok=True)
        return []


class _Arrival:
    """A file that is being fetched, under a temporary name that the next run finds again.

    Use as a context manager; the file is open for reading and writing inside.
    """

    def __init__(self, folder: Path, name: str, meter: Meter) -> None:
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        self.path = folder / f"{TEMPORARY_PREFIX}{digest}{ARRIVING}"
        self._target = folder / name
        self._folder, self._meter = folder, meter
        self._counted = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> IO[bytes]:
        with refused(self._target, 0):
            make_folders(self._folder, self._target)
            how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

            def opener(path: str, flags: int) -> int:
                return os.open(path, how, 0o644)

            self._file = open(self.path, "r+b", opener=opener)
            return self._file

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        assert self._file is not None
        if kind is not None:
            self._meter.move(-self._counted)
            self._counted = 0
        with refused(self._target, 0):
            self._file.close()

    def keep(self, file: IO[bytes], size: int) -> None:
        """Keep the first bytes of the file, and count them as there."""
        with refused(self._target, 0):
            file.seek(size)
            file.truncate()
        self.count(size)

    def count(self, number: int) -> None:
        """Count bytes that have arrived."""
        self._counted += number
        self._meter.move(number)

    def publish(self, file: IO[bytes]) -> None:
        """Give the file its name."""
        with refused(self._target, 0):
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            self.path.replace(self._target)


def has_object(folder: Path, name: str, record: ObjectRecord) -> bool:
    """Whether a folder has an object with every byte that the ledger lists."""
    try:
        if plain_size(folder, name) != record.bytes:
            return False
    except OSError:
        return False
    return not any(True for _ in damaged_blocks(folder / name, record, range(record.num_blocks)))


def make_folders(root: Path, path: Path) -> None:
    """Make the folders between a root and a file below it.

    Raises:
        StoreWriteError: the disk refused, or one of them is a link, which could lead anywhere.
    """
    with refused(path, 0):
        for folder in reversed(path.relative_to(root).parents):
            if folder.parts:  # the root itself may be reached through links
                check_real_folder(root / folder)
            (root / folder).mkdir(exist_ok=True)


def entries_sha256(folder: Path, num_shards: int) -> str:
    """Return the SHA-256 of all entries of a ledger in order; "" if one is missing."""
    digest = hashlib.sha256()
    try:
        for shard in range(num_shards):
            digest.update(read_plain(folder, entry_name(shard)))
    except OSError:
        return ""
    return digest.hexdigest()


def _same(path: Path, folder: Path, name: str) -> bool:
    with suppress(OSError):
        return _sha256(path.parent, path.name) == _sha256(folder, name)
    return False


def _sha256(folder: Path, name: str) -> str:
    plain_size(folder, name)
    with os.fdopen(open_plain(folder / name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

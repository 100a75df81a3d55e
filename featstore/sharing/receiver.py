"""Bring the files of a store from a place into a local folder; each gets its name when its bytes are those of the
ledger.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

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
from featstore.format.ledger import ObjectRecord, ShardRecord
from featstore.places.base import AccessRefused, FileSink, Place, TooLong
from featstore.reading.cached.published_store import (
    EXTRAS,
    MARK_NAME,
    Contents,
    artefact_name,
    entry_name,
    parse_entry,
    until_sound,
)
from featstore.sharing.progress import Meter
from featstore.sharing.stream_checksums import BlockSums
from featstore.sharing.worker_threads import Countdown, Job

ARRIVING = "-arriving"
"""End of the name of a file that is on its way."""

ADVICE = "The copy there is damaged, or the network is: have it verified and pushed again where it was made."


class Receiver:
    """Fetches what a folder lacks of a store.

    Args:
        place: where the store is.
        contents: what it says of itself.
        folder: of the copy; whoever calls has it alone.
        meter: counts.
        donor: an older store on the same disk, from which objects are linked that are the same.
        trust_entries: entries of the ledger that are in the folder came from this very store.
    """

    def __init__(
        self,
        place: Place,
        contents: Contents,
        folder: Path,
        meter: Meter,
        *,
        donor: Path | None = None,
        trust_entries: bool = False,
    ) -> None:
        self._place, self._contents, self._folder = place, contents, folder
        self._meter, self._donor, self._trust_entries = meter, donor, trust_entries
        self._backend = make_backend(folder, contents.manifest)
        self._announced = 0
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Remove what a killed run left half-written."""
        for path in self._folder.glob(f"{TEMPORARY_PREFIX}*{ARRIVING}"):
            path.unlink(missing_ok=True)

    def metadata_jobs(self) -> Iterator[Job]:
        """What the container writes first."""
        for name, made in metadata_files(self._contents.manifest).items():
            yield partial(self._metadata, name, made)

    def artefact_jobs(self) -> Iterator[Job]:
        """Artefacts."""
        for name in self._contents.manifest.artefacts:
            yield partial(self._artefact, name)

    def extra_jobs(self) -> Iterator[Job]:
        """What people and tools put beside a store."""
        for name, most_bytes in EXTRAS.items():
            yield partial(self._extra, name, most_bytes)

    def shard_jobs(self, shards: Iterable[int], wanted: Callable[[str], bool]) -> Iterator[Job]:
        """Shards: the ledger's entry of each first, then the objects that are wanted."""
        for shard in shards:
            yield partial(self._shard, shard, wanted)

    def check_entries(self) -> None:
        """Compare all entries together with the mark of the complete store.

        Raises:
            ShardCorrupt: one is not the one that the store was completed with.
        """
        expected = self._contents.mark.entries_sha256
        if expected and entries_sha256(self._folder, self._contents.mark.shards) != expected:
            raise ShardCorrupt(
                f"{self._place.url}: the entries of its ledger are not those that {MARK_NAME} was written for. Was it "
                f"pushed anew just now? Then run the same again."
            )

    def _shard(self, shard: int, wanted: Callable[[str], bool]) -> list[Job]:
        entry, data = self._entry(shard)
        self._announce(sum(record.bytes for record in entry.objects.values()), shard)
        names = sorted(name for name in entry.objects if wanted(name))
        for name in entry.objects.keys() - names:
            self._meter.leave_out(entry.objects[name].bytes)
        left = Countdown(len(names), lambda: self._keep(entry_name(shard), data))
        return [partial(self._object, shard, name, entry.objects[name], left) for name in names]

    def _entry(self, shard: int) -> tuple[ShardRecord, bytes]:
        name = entry_name(shard)
        if self._trust_entries:
            with suppress(OSError, ShardCorrupt):
                data = read_plain(self._folder, name)
                return parse_entry(data, self._backend, shard, self._place.url), data

        def read() -> tuple[ShardRecord, bytes]:
            try:
                data = self._place.read(name, most_bytes=MOST_JSON_BYTES)
            except RemoteNotFound:
                raise ShardCorrupt(
                    f"{self._place.url}/{name}: missing, though the store is marked as complete."
                ) from None
            return parse_entry(data, self._backend, shard, self._place.url), data

        return until_sound(read, self._meter.damage, ADVICE)

    def _announce(self, size: int, shard: int) -> None:
        """Entries that add up to more than the store claims to have are not followed: disks are finite."""
        with self._lock:
            self._announced += size
            total = self._announced
        if total > self._contents.mark.bytes:
            raise ShardCorrupt(
                f"{self._place.url}/{entry_name(shard)}: with this entry the shards have {total:,} bytes or more, and "
                f"the whole store should have {self._contents.mark.bytes:,}. Ask whoever published it."
            )

    def _object(self, shard: int, name: str, record: ObjectRecord, left: Countdown) -> list[Job]:
        if has_object(self._folder, name, record) or self._link(name, record):
            self._meter.skip(record.bytes)
        else:
            until_sound(
                partial(self._fetch_object, shard, name, record), self._meter.damage, ADVICE
            )
            self._meter.arrive(record.bytes)
        left.one_less()
        return []

    def _link(self, name: str, record: ObjectRecord) -> bool:
        """Take an object from the older store, if it has the same; until that one is removed, both have it."""
        if self._donor is None or not has_object(self._donor, name, record):
            return False
        path = self._folder / name
        make_folders(self._folder, path)
        with suppress(OSError):  # a file system without links, for one: then it travels
            os.link(self._donor / name, path)
            return True
        return False

    def _fetch_object(self, shard: int, name: str, record: ObjectRecord) -> None:
        where = f"{self._place.url}/{name}"
        with self._arriving(name) as arrival:
            sums = BlockSums(record, arrival.sink)
            try:
                self._place.stream(name, sums, most_bytes=record.bytes, progress=arrival.count)
                problem = sums.problem(self._backend, shard, name)
            except RemoteNotFound:
                problem = f"shard {shard}: missing"
            except TooLong:
                problem = (
                    f"shard {shard}: longer than the {record.bytes:,} bytes that the ledger says"
                )
            if problem:
                raise ShardCorrupt(f"{where}: {problem}.")

    def _artefact(self, artefact: str) -> list[Job]:
        name, record = artefact_name(artefact), self._contents.manifest.artefacts[artefact]
        with suppress(OSError):
            if _sha256(self._folder, name) == record.sha256:
                self._meter.skip(record.bytes)
                return []

        def fetch() -> None:
            found = ""
            with self._arriving(name) as arrival:
                try:
                    self._place.stream(
                        name, arrival.sink, most_bytes=record.bytes, progress=arrival.count
                    )
                    arrival.sink.flush()
                    found = _sha256(self._folder, arrival.path.name)
                except (RemoteNotFound, TooLong) as error:
                    found = "none: " + str(error)
                if found != record.sha256:
                    raise ShardCorrupt(
                        f"{self._place.url}/{name}: sha256 {found}, expected {record.sha256}."
                    )

        until_sound(fetch, self._meter.damage, ADVICE)
        self._meter.arrive(record.bytes)
        return []

    def _metadata(self, name: str, made: bytes) -> list[Job]:
        """Kept as it is there if it says what the manifest asks for, so that a signature holds; else made here."""
        with suppress(OSError):
            if not difference(read_plain(self._folder, name), made):
                self._meter.skip(0)
                return []
        try:
            found = self._place.read(name, most_bytes=4 * len(made) + 2**16)
            problem = difference(found, made)
        except (RemoteNotFound, AccessRefused, TooLong) as error:
            found, problem = b"", str(error)
        if problem:
            self._meter.note(f"{name} was made anew from the manifest; at the place: {problem}")
        self._keep(name, made if problem else found)
        return []

    def _extra(self, name: str, most_bytes: int) -> list[Job]:
        size = 0
        with suppress(RemoteNotFound, AccessRefused), self._arriving(name) as arrival:
            size = self._place.stream(
                name, arrival.sink, most_bytes=most_bytes, progress=arrival.count
            )
        if size:
            self._meter.arrive(size)
        return []

    def _keep(self, name: str, data: bytes) -> None:
        """Write a small file, unless it is there."""
        with suppress(OSError):
            if read_plain(self._folder, name) == data:
                return
        path = self._folder / name
        make_folders(self._folder, path)
        write_bytes(path, data)

    @contextmanager
    def _arriving(self, name: str) -> Iterator["_Arrival"]:
        """A file that gets its name at the end of the block; if the block fails, its bytes do not count."""
        path = self._folder / name
        make_folders(self._folder, path)
        with refused(path, 0):
            handle, temporary = tempfile.mkstemp(
                prefix=TEMPORARY_PREFIX, suffix=ARRIVING, dir=self._folder
            )
            file = os.fdopen(handle, "wb")
            arrival = _Arrival(Path(temporary), FileSink(file), self._meter)
            try:
                with file:
                    yield arrival
                    file.flush()
                    os.fchmod(handle, 0o644)
                    os.fsync(handle)
                arrival.path.replace(path)
            except BaseException:
                self._meter.move(-arrival.bytes)
                arrival.path.unlink(missing_ok=True)
                raise


class _Arrival:
    """A file that is on its way.

    Attributes:
        path: its temporary name.
        sink: takes its bytes.
        bytes: that count as moved.
    """

    def __init__(self, path: Path, sink: FileSink, meter: Meter) -> None:
        self.path, self.sink = path, sink
        self.bytes = 0
        self._meter = meter

    def count(self, number: int) -> None:
        """Count bytes that have come."""
        self.bytes += number
        self._meter.move(number)


def has_object(folder: Path, name: str, record: ObjectRecord) -> bool:
    """Whether a folder has an object with every byte that the ledger says."""
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
    """SHA-256 of all entries of a ledger in order; "" if one is missing."""
    digest = hashlib.sha256()
    try:
        for shard in range(num_shards):
            digest.update(read_plain(folder, entry_name(shard)))
    except OSError:
        return ""
    return digest.hexdigest()


def _sha256(folder: Path, name: str) -> str:
    plain_size(folder, name)
    with os.fdopen(open_plain(folder / name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

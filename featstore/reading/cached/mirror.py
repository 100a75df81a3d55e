"""A store at a URL as a local folder that holds what was needed of it so far.

The folder is made from the manifest: container metadata follow from it, and are not fetched. Entries of the ledger come
when they are needed first, objects when rows in them are. An object gets its name in the folder when its bytes are
those that the ledger says. So whatever reads stores reads this folder, and checks it, as it does any other.

Each version of a store, which is its manifest and the mark of its completeness, has a folder of its own. When another
one is published at the URL, readers of the old one read what is cached and what has not changed; anything else is an
error.
"""

import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from featstore.containers import make_backend
from featstore.containers.block_checksums import damaged_blocks
from featstore.errors import RemoteError, RemoteNotFound, ShardCorrupt, StoreBusy, StoreError
from featstore.files.atomic import TEMPORARY_PREFIX, WRITE_BYTES, refused
from featstore.files.untrusted import MOST_JSON_BYTES, make_real_folders
from featstore.format.artefacts import artefact_file, artefact_path, read_artefact
from featstore.format.ledger import (
    LEDGER_FOLDER,
    ObjectRecord,
    ShardRecord,
    entry_name,
    entry_path,
    read_complete,
    read_entry,
)
from featstore.format.manifest import Manifest
from featstore.places.base import FileSink, Place, TooLong
from featstore.places.open_place import open_place
from featstore.reading.cached.cache import Arrival, Cache, CacheConfig
from featstore.reading.cached.published_store import (
    MARK_NAME,
    PUBLISHER,
    TRIES,
    parse_published_entry,
    retry_damaged,
    url_in_errors,
)

FETCHES = 3  # how often an object is fetched that arrives damaged

STALLED_S = 900.0
"""How long to wait for a file that another process fetches, without a byte of it arriving."""

T = TypeVar("T")

Objects = Mapping[str, tuple[int, ObjectRecord]]
"""Objects by name: the number of their shard, and their ledger records."""


@dataclass(eq=False)
class Mirror:
    """The part of one version of a store that is in the cache. May be sent to another process."""

    asked: str  # the URL as it was given
    url: str  # without secrets
    folder: Path
    config: CacheConfig
    manifest: Manifest
    shards: Sequence[int]
    # SHA-256 of the manifest and, of a complete store, of the mark that says so, by name
    version: Mapping[str, str]

    def __post_init__(self) -> None:
        self.cache = Cache(self.config)
        # Names what objects hold; it reads none of them.
        self.backend = make_backend(self.folder, self.manifest)
        self._place: Place | None = None
        self._owner = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave connections behind."""
        return Mirror, tuple(getattr(self, item.name) for item in fields(self))

    @property
    def place(self) -> Place:
        """The place of the store; connected again after a fork."""
        if self.config.offline:
            raise RemoteError(
                f"{self.url}: what was asked for is not in the cache ({self.folder}), and FEATSTORE_OFFLINE is set. "
                "Unset it, and read this once with a connection."
            )
        if self._place is None or self._owner != os.getpid():
            self._place, self._owner = open_place(self.asked, retry=self.config.retry), os.getpid()
        return self._place

    def bring_entries(self, shards: Sequence[int]) -> None:
        """Fetch entries of the ledger that are not here yet, side by side.

        Raises:
            ShardCorrupt: an entry is missing or damaged.
        """
        missing = [shard for shard in shards if not entry_path(self.folder, shard).exists()]
        if not missing:
            return
        found = self._side_by_side(self._read_entry, missing)
        # An entry does not say which store it is of. Publishing another one takes the manifest away first, so if it
        # still lies there after the entries were read, they are of this one.
        if self._was_replaced(self.place):
            raise self._replaced()
        for shard, data in zip(missing, found, strict=True):
            self._put(entry_path(self.folder, shard), data)
        self._compare_ledger()

    def entry(self, shard: int) -> ShardRecord:
        self.bring_entries([shard])
        with url_in_errors(self.url, self.folder):
            try:
                return read_entry(self.folder, shard)
            except ShardCorrupt:  # on the disk of the cache
                entry_path(self.folder, shard).unlink(missing_ok=True)
                self.bring_entries([shard])
                return read_entry(self.folder, shard)

    def _read_entry(self, shard: int) -> bytes:
        def read() -> bytes:
            data = self.place.read(entry_name(shard), most_bytes=MOST_JSON_BYTES)
            parse_published_entry(data, self.backend, shard, self.url)
            return data

        try:
            return retry_damaged(read, advice=PUBLISHER)
        except StoreError as error:
            if self._was_replaced_now():
                raise self._replaced() from error
            if not isinstance(error, RemoteNotFound):
                raise
            raise ShardCorrupt(
                f"{self.url}/{entry_name(shard)}: missing, so shard {shard} does not exist there. {PUBLISHER}"
            ) from error

    def _compare_ledger(self) -> None:
        """Once all entries are here: compare them with the hash of all entries that the store states."""
        mark = read_complete(self.folder, self.manifest.num_shards)
        if mark is None or not mark.entries_sha256:
            return
        paths = [entry_path(self.folder, shard) for shard in range(self.manifest.num_shards)]
        if not all(path.exists() for path in paths):
            return
        digest = hashlib.sha256()
        for path in paths:
            digest.update(path.read_bytes())
        if digest.hexdigest() != mark.entries_sha256:
            for path in paths:
                path.unlink(missing_ok=True)
            if self._was_replaced_now():
                raise self._replaced()
            raise ShardCorrupt(
                f"{self.url}/{LEDGER_FOLDER}: the entries are not those that {MARK_NAME} was written for. "
                f"{PUBLISHER}"
            )

    def bring(self, objects: Objects) -> None:
        """Fetch objects that are not here, side by side; those that another process fetches are waited for.

        Args:
            objects: all that are needed at a time.

        Raises:
            ConfigError: they do not fit into the cache together.
            ShardCorrupt: an object arrives damaged again and again.
        """

        def check(name: str, temporary: Path) -> str:
            return self._problem(name, temporary, *objects[name])

        self._bring({name: record.bytes for name, (_, record) in objects.items()}, check)

    def artefact(self, name: str) -> dict[str, Any]:
        self.bring_artefact(name)
        with url_in_errors(self.url, self.folder):
            try:
                return read_artefact(self.folder, self.manifest, name)
            except ShardCorrupt:  # on the disk of the cache
                artefact_path(self.folder, name).unlink(missing_ok=True)
                self.bring_artefact(name)
                return read_artefact(self.folder, self.manifest, name)

    def bring_artefact(self, name: str) -> None:
        """Fetch a small file of the store, if there is one of this name and it is not here."""
        record = self.manifest.artefacts.get(name)
        if record is None:
            return
        path = artefact_file(name)

        def check(_: str, temporary: Path) -> str:
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return "" if digest == record.sha256 else f"sha256 {digest}, expected {record.sha256}"

        self._bring({path: record.bytes}, check)

    def _bring(self, sizes: Mapping[str, int], check: Callable[[str, Path], str]) -> None:
        names = {self.folder / name: name for name in sizes}
        wanted = {path: sizes[name] for path, name in names.items()}
        self.cache.refresh()
        if all(path.exists() for path in wanted):
            return
        self.cache.check_fits(sum(wanted.values()), f"{self.url}: what was asked for")
        sign, since, pause_s = -1, time.monotonic(), 0.002
        while (got := self.cache.reserve(wanted, keep=wanted)) is not None:
            if isinstance(got, Arrival):
                self._fetch_all(got, names, check)
                since = time.monotonic()
                continue
            if got != sign:
                sign, since = got, time.monotonic()
            if time.monotonic() - since > STALLED_S:
                raise StoreBusy(
                    f"{self.url}: another process fetches what is needed here, and nothing has arrived for "
                    f"{STALLED_S:.0f} s. If it is stopped, continue it (kill -CONT) or end it."
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.1)

    def _fetch_all(
        self, arrival: Arrival, names: Mapping[Path, str], check: Callable[[str, Path], str]
    ) -> None:
        sizes = {
            path: int(temporary.name.partition("-")[0])
            for path, temporary in arrival.temporary.items()
        }

        def fetch(path: Path) -> None:
            name, temporary, size = names[path], arrival.temporary[path], sizes[path]
            problem = ""
            for _ in range(FETCHES):
                problem = self._fetch(name, temporary, size, bar.update) or check(name, temporary)
                if not problem:
                    arrival.publish(path)
                    return
            if self._was_replaced_now():
                raise self._replaced()
            if (
                MARK_NAME not in self.version
            ):  # entries of a store that is not complete may have changed
                for entry in (self.folder / LEDGER_FOLDER).glob("[0-9]*.json"):
                    entry.unlink(missing_ok=True)
            raise ShardCorrupt(
                f"{self.url}/{name}: {problem}; fetched {FETCHES} times. {PUBLISHER}"
            )

        try:
            with self._bar(sum(sizes.values())) as bar:
                self._side_by_side(fetch, list(arrival.temporary))
        finally:
            self.cache.close(arrival)

    def _bar(self, size: int) -> "tqdm[Any]":
        """A bar of bytes on a terminal, for a fetch that takes longer than a second."""
        return tqdm(
            total=size,
            desc=f"fetching {self.url}",
            unit="B",
            unit_scale=True,
            delay=1,
            leave=False,
            # None: not where nobody looks. Workers of loaders would draw over each other.
            disable=True if multiprocessing.parent_process() is not None else None,
        )

    def _fetch(
        self, name: str, temporary: Path, size: int, progress: Callable[[int], object]
    ) -> str:
        """Fetch one file; returns what is wrong with its size."""
        try:
            # Written in pieces as large as our own writer's, a file is mapped by huge pages: random rows of 2 KB are
            # then found as fast as in a local store.
            with refused(temporary, size), temporary.open("wb", WRITE_BYTES) as file:
                found = self.place.stream(name, FileSink(file), most_bytes=size, progress=progress)
        except RemoteNotFound as error:
            if self._was_replaced_now():
                raise self._replaced() from error
            raise RemoteNotFound(
                f"{self.url}/{name}: missing, though the store lists it. {PUBLISHER}"
            ) from error
        except TooLong as error:
            return str(error)
        except RemoteError as error:
            if self._was_replaced_now():
                raise self._replaced() from error
            raise
        return "" if found == size else f"{found:,} bytes arrived, expected {size:,}"

    def _problem(self, name: str, path: Path, shard: int, record: ObjectRecord) -> str:
        """What is wrong with the bytes of an object that has arrived, and with which rows; "" if nothing is."""
        found = _first_damage(path, record)
        if found is None:
            return ""
        span = record.block(found[0])
        column, rows = self.backend.holds(shard, name, span.start, span.stop)
        return f'shard {shard} (rows {rows.start}-{rows.stop - 1}), column "{column}": {found[1]}'

    def damaged(self, objects: Objects) -> list[Path]:
        """Those of some objects that are here, and whose bytes are not those that were written."""
        found = []
        for name, (_, record) in objects.items():
            path = self.folder / name
            if path.exists() and _first_damage(path, record) is not None:
                found.append(path)
        return found

    def _was_replaced(self, place: Place) -> bool:
        """Whether another store, or another version of it, is at the URL now."""

        def differs(name: str) -> bool:
            # An answer may be damaged, or meant for another request, but hardly twice in the same way.
            before = ""
            for _ in range(TRIES):
                try:
                    data = place.read(name, most_bytes=MOST_JSON_BYTES)
                except TooLong:
                    data = b""
                found = hashlib.sha256(data).hexdigest()
                if found in (self.version[name], before):
                    break
                before = found
            return found != self.version[name]

        try:
            return any(differs(name) for name in self.version)
        except RemoteNotFound:
            return True

    def _was_replaced_now(self) -> bool:
        """As ``_was_replaced``, asked once after something else has failed; False if the place does not answer."""
        if self.config.offline:
            return False
        try:
            once = replace(self.config.retry, attempts=1)
            return self._was_replaced(open_place(self.asked, retry=once))
        except StoreError:
            return False

    def _replaced(self) -> RemoteError:
        return RemoteError(
            f"{self.url}: the store at this URL was replaced or taken away while it was read, and what was asked for "
            "is not in the cache. Open it again; training that has begun has to begin again."
        )

    def _put(self, path: Path, data: bytes) -> None:
        """Write a small file; not synced, because it is checked when it is read, and can be fetched again."""
        with refused(path, len(data)):
            self.cache.make_folders()  # somebody may have deleted the cache
            make_real_folders(self.cache.stores, path.parent)
            handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(path)

    def _side_by_side(self, work: Callable[[Any], T], items: Collection[Any]) -> list[T]:
        """Do something for each item; the first error ends it all."""
        if len(items) == 1:
            return [work(item) for item in items]
        pool = ThreadPoolExecutor(min(self.config.jobs, len(items)), "featstore-fetch")
        try:
            return list(pool.map(work, items))
        except BaseException as error:
            if not isinstance(error, Exception) and self._place is not None:  # interrupted
                self._place.stop()
                self._place = None
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _first_damage(path: Path, record: ObjectRecord) -> tuple[int, str] | None:
    """(block, what is wrong) of the first block of a file that is not as it was written; its size counts as well."""
    size = path.stat().st_size
    if size != record.bytes:
        return 0, f"{size:,} bytes, expected {record.bytes:,}"
    return next(iter(damaged_blocks(path, record, range(record.num_blocks))), None)

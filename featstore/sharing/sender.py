"""Upload the files of a local store; uploads are read back and compared with the ledger."""

import hashlib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featstore.containers import make_backend
from featstore.containers.block_checksums import why_unreadable
from featstore.errors import RemoteNotFound, ShardCorrupt, StoreError
from featstore.files.atomic import TEMPORARY_PREFIX
from featstore.files.untrusted import open_plain, plain_size, read_plain
from featstore.format.ledger import ObjectRecord, entry_name
from featstore.format.manifest import MANIFEST_NAME
from featstore.maintenance.verify_shard import belongs_to_shard, check_object
from featstore.places.base import Place, TooLong
from featstore.reading.cached.published_store import (
    EXTRAS,
    FOLDERS,
    MARK_NAME,
    UNFINISHED_NAME,
    Contents,
    parse_published_entry,
    retry_damaged,
)
from featstore.sharing.comparisons import BlockSums, ComparingSink, Sha256Sum
from featstore.sharing.jobs import Countdown, Job
from featstore.sharing.progress import Meter

ADVICE = "Uploads arrive damaged: check the network, or push to another place. Nothing there is a store yet."


@dataclass
class Sender:
    """Sends the files of a store that a place lacks."""

    store: Path
    contents: Contents
    place: Place
    meter: Meter
    # compare files at the place by reading them; else their sizes are compared, and uploads trusted
    read_back: bool
    there: dict[str, int]  # bytes of the files at the place, by name
    # the place has this store, complete; then all its files are compared, else those that an interrupted push has
    # compared already are not compared again
    same: bool
    dry_run: bool = False  # only count what would be sent

    def __post_init__(self) -> None:
        self._backend = make_backend(self.store, self.contents.manifest)
        self.sent_extra = False

    def jobs(self) -> Iterator[Job]:
        """All files but the manifest and the mark, which make it a store."""
        for name in (*self.contents.small_names(), *self._extras()):
            yield partial(self._small, name)
        for shard in range(self.contents.manifest.num_shards):
            yield partial(self._shard, shard)

    def _extras(self) -> list[str]:
        return [name for name in EXTRAS if os.path.lexists(self.store / name)]

    def stale_extras(self) -> list[str]:
        """Card, page and signature at the place that this store does not have."""
        return [name for name in EXTRAS if name in self.there and name not in self._extras()]

    def leftovers(self) -> list[str]:
        """Files that an interrupted push was writing; on object stores there are none."""
        return [
            name
            for name in self.there
            if name.startswith(TEMPORARY_PREFIX) and name != UNFINISHED_NAME
        ]

    def others(self) -> list[str]:
        """Files at the place that are not of this store; extras count as its own, whether or not it has any."""
        return foreign_files(self.contents, self.there)

    def foreign(self) -> list[str]:
        """Files in the folders of a store at the place that are not of this one."""
        return [name for name in self.others() if name.split("/")[0] in FOLDERS]

    def write_small(self, name: str, data: bytes, *, counted: bool = True) -> None:
        """Write a small file, and compare it."""
        self.meter.announce(len(data))
        comparison = partial(Sha256Sum, hashlib.sha256(data).hexdigest())
        self._send(name, data, len(data), comparison, counted=counted)

    def _shard(self, shard: int) -> list[Job]:
        name = entry_name(shard)
        try:
            data = read_plain(self.store, name)
        except OSError as error:
            raise ShardCorrupt(
                f"{self.store / name}: cannot be sent ({why_unreadable(error)}). Run featstore "
                f"verify {shlex.quote(str(self.store))}."
            ) from None
        entry = parse_published_entry(data, self._backend, shard, str(self.store))
        trusted = self.same and not self.read_back
        finished = self.there.get(name) == len(data) and (
            trusted or self._is_there(name, Sha256Sum(hashlib.sha256(data).hexdigest()))
        )

        def commit() -> None:
            if finished:
                self.meter.announce(len(data))
                self.meter.skip(len(data), compared=not trusted)
            else:
                self.write_small(name, data)

        left = Countdown(len(entry.objects), commit)
        return [
            partial(self._object, shard, name, record, finished, left)
            for name, record in sorted(entry.objects.items())
        ]

    def _object(
        self, shard: int, name: str, record: ObjectRecord, finished: bool, left: Countdown
    ) -> list[Job]:
        comparison = partial(BlockSums, self._backend, shard, name, record)
        # Under an entry that an interrupted push has written, objects were compared.
        trusted = finished and not (self.same and self.read_back)
        there = self.there.get(name) == record.bytes
        if there and trusted:
            self.meter.skip(record.bytes)
        elif there and self.read_back and self._is_there(name, comparison()):
            self.meter.skip(record.bytes, compared=True)
        else:
            for damage in check_object(self._backend, shard, name, record):
                raise ShardCorrupt(f"{self.store}: {damage}, then push it.")
            self._send(name, self.store / name, record.bytes, comparison)
        left.count_down()
        return []

    def _small(self, name: str) -> list[Job]:
        path = self.store / name
        try:
            size = plain_size(self.store, name)
            with os.fdopen(open_plain(path), "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be sent ({why_unreadable(error)}). Run featstore "
                f"verify {shlex.quote(str(self.store))}."
            ) from None
        expected = self.contents.artefact_hashes().get(name, digest)
        if digest != expected:
            raise ShardCorrupt(
                f"{path}: sha256 {digest}, expected {expected}. Fetch the store again, or extract it again."
            )
        self.meter.announce(size)
        if self.there.get(name) == size and self._is_there(name, Sha256Sum(digest)):
            self.meter.skip(size, compared=True)
        else:
            self.sent_extra |= name in EXTRAS
            self._send(name, path, size, partial(Sha256Sum, digest))
        return []

    def _is_there(self, name: str, sums: ComparingSink) -> bool:
        """Whether the place has a file as it should be; what is damaged at a complete store is noted."""
        problem = self._read(name, sums, self.there[name])
        if problem and self.same and not self.dry_run:
            self.meter.damage(f"{self.place.url}/{name}: {problem}")
        return not problem

    def _read(self, name: str, sums: ComparingSink, size: int) -> str:
        """Read a file at the place; returns what is wrong with it."""
        moved = 0

        def count(number: int) -> None:
            nonlocal moved
            moved += number
            self.meter.move(number)

        try:
            self.place.stream(name, sums, most_bytes=size, progress=count)
            problem = sums.problem()
        except (RemoteNotFound, TooLong, ShardCorrupt) as error:
            problem = str(error.args[0])
        if problem:
            self.meter.move(-moved)
        return problem

    def _send(
        self,
        name: str,
        data: bytes | Path,
        size: int,
        comparison: Callable[[], ComparingSink],
        *,
        counted: bool = True,
    ) -> None:
        moved = 0

        def count(number: int) -> None:
            nonlocal moved
            moved += number
            self.meter.move(number)

        def send() -> None:
            nonlocal moved
            self.meter.move(-moved)
            moved = 0
            self.place.write(name, data, progress=count)
            if (
                self.read_back
                and not self.place.checks
                and (problem := self._read(name, comparison(), size))
            ):
                raise ShardCorrupt(f"{self.place.url}/{name}: {problem}.")

        if not self.dry_run:
            retry_damaged(send, self.meter.damage, ADVICE)
        if counted:
            self.meter.arrive(size)


def foreign_files(contents: Contents, names: Iterable[str]) -> list[str]:
    """List the files at a place that no part of the format accounts for."""
    backend = make_backend(Path(), contents.manifest)
    own = {MANIFEST_NAME, UNFINISHED_NAME, MARK_NAME, *EXTRAS, *contents.small_names()}
    return sorted(name for name in names if name not in own and not belongs_to_shard(backend, name))

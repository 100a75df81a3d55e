"""Bring the files of a local store to a place; what was sent is read back and compared to the ledger."""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from featstore.containers import Backend, make_backend
from featstore.containers.block_checksums import why_unreadable
from featstore.errors import RemoteNotFound, ShardCorrupt, StoreError
from featstore.files.untrusted import open_plain, plain_size, read_plain
from featstore.format.ledger import ObjectRecord
from featstore.maintenance.verify_shard import check_object, of_a_shard
from featstore.places.base import Place, Sink, TooLong
from featstore.reading.cached.published_store import (
    EXTRAS,
    FOLDERS,
    MARK_NAME,
    UNFINISHED_NAME,
    Contents,
    entry_name,
    parse_entry,
    until_sound,
)
from featstore.sharing.progress import Meter
from featstore.sharing.stream_checksums import BlockSums
from featstore.sharing.worker_threads import Countdown, Job

ADVICE = (
    "Something on the way to this place, or the place itself, damages what is sent. Nothing there is a store yet; the "
    "same command goes on."
)


class Sender:
    """Sends what a place lacks of a store.

    Args:
        store: its folder.
        contents: what it says of itself.
        place: where it goes.
        meter: counts.
        read_back: compare what arrived by reading it; else the transport is trusted.
        there: bytes of the files that are at the place, by name; only those are looked at.
        same_ledger: the ledger there is ours, as its mark says.
    """

    def __init__(
        self,
        store: Path,
        contents: Contents,
        place: Place,
        meter: Meter,
        *,
        read_back: bool,
        there: dict[str, int],
        same_ledger: bool,
    ) -> None:
        self._store, self._contents, self._place, self._meter = store, contents, place, meter
        self._read_back = read_back and not place.checks
        self._there, self._same_ledger = there, same_ledger
        self._backend = make_backend(store, contents.manifest)

    def jobs(self) -> Iterator[Job]:
        """Everything but the marks that make it a store."""
        for name in self._contents.small_names():
            yield partial(self._small, name)
        for name in EXTRAS:
            if os.path.lexists(self._store / name):
                yield partial(self._small, name)
        for shard in range(self._contents.manifest.num_shards):
            yield partial(self._shard, shard)

    def others(self) -> list[str]:
        """Files at the place that are not of this store; extras count as its own, whether or not it has any."""
        own = {UNFINISHED_NAME, MARK_NAME, *EXTRAS, *self._contents.small_names()}
        return sorted(
            name for name in self._there if name not in own and not of_a_shard(self._backend, name)
        )

    def foreign(self) -> list[str]:
        """What lies in a store's folders at the place, and is not of this one."""
        return [name for name in self.others() if name.split("/")[0] in FOLDERS]

    def write_small(self, name: str, data: bytes) -> None:
        """Write a small file, and compare it."""
        self._send(name, data, len(data), lambda: _Hash(hashlib.sha256(data).hexdigest()))

    def _shard(self, shard: int) -> list[Job]:
        name = entry_name(shard)
        try:
            data = read_plain(self._store, name)
        except OSError as error:
            raise ShardCorrupt(
                f"{self._store / name}: cannot be sent ({why_unreadable(error)}). Run featstore verify {self._store}."
            ) from None
        entry = parse_entry(data, self._backend, shard, str(self._store))
        finished = self._there.get(name) == len(data) and (
            self._same_ledger or self._is_there(name, _Hash(hashlib.sha256(data).hexdigest()))
        )
        commit = partial(self.write_small, name, data)
        left = Countdown(len(entry.objects), (lambda: None) if finished else commit)
        return [
            partial(self._object, shard, name, record, finished, left)
            for name, record in sorted(entry.objects.items())
        ]

    def _object(
        self, shard: int, name: str, record: ObjectRecord, finished: bool, left: Countdown
    ) -> list[Job]:
        """One object; under an entry that is there it was compared before, else it may be half of another one."""

        def sums() -> _Sums:
            return _Sums(self._backend, shard, name, record)

        if self._there.get(name) == record.bytes and (
            finished or (self._read_back and self._is_there(name, sums()))
        ):
            self._meter.skip(record.bytes)
        else:
            self._check_local(shard, name, record)
            self._send(name, self._store / name, record.bytes, sums)
        left.one_less()
        return []

    def _check_local(self, shard: int, name: str, record: ObjectRecord) -> None:
        for damage in check_object(self._backend, shard, name, record):
            raise ShardCorrupt(f"{self._store}: {damage}, then push it.")

    def _small(self, name: str) -> list[Job]:
        path = self._store / name
        try:
            size = plain_size(self._store, name)
            with os.fdopen(open_plain(path), "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be sent ({why_unreadable(error)}). Run featstore verify {self._store}."
            ) from None
        expected = self._contents.artefact_hashes().get(name, digest)
        if digest != expected:
            raise ShardCorrupt(
                f"{path}: sha256 {digest}, expected {expected}. Fetch the store again, or extract it again."
            )
        if self._there.get(name) == size and self._is_there(name, _Hash(digest)):
            self._meter.skip(size)
        else:
            self._send(name, path, size, lambda: _Hash(digest))
        return []

    def _is_there(self, name: str, sums: "_Comparison") -> bool:
        """Whether the place has a file as it should be."""
        try:
            self._place.stream(name, sums, most_bytes=self._there[name])
        except (RemoteNotFound, TooLong):
            return False
        return not sums.difference()

    def _send(
        self, name: str, data: bytes | Path, size: int, compare: Callable[[], "_Comparison"]
    ) -> None:
        moved = 0

        def count(number: int) -> None:
            nonlocal moved
            moved += number
            self._meter.move(number)

        def send() -> None:
            nonlocal moved
            self._meter.move(-moved)
            moved = 0
            self._place.write(name, data, progress=count)
            if self._read_back:
                sums = compare()
                try:
                    self._place.stream(name, sums, most_bytes=size)
                    problem = sums.difference()
                except (RemoteNotFound, TooLong) as error:
                    problem = str(error)
                if problem:
                    raise ShardCorrupt(f"{self._place.url}/{name}: {problem}.")

        until_sound(send, self._meter.damage, ADVICE)
        self._meter.arrive(size)


class _Comparison(Sink, Protocol):
    """A sink that knows what should have come."""

    def difference(self) -> str:
        """What is wrong with what came, in words; "" if nothing is."""


class _Sums(BlockSums):
    def __init__(self, backend: Backend, shard: int, name: str, record: ObjectRecord) -> None:
        super().__init__(record)
        self._names = backend, shard, name

    def difference(self) -> str:
        return self.problem(*self._names)


class _Hash:
    def __init__(self, expected: str) -> None:
        self._expected = expected
        self.restart()

    def write(self, piece: bytes) -> None:
        self._digest.update(piece)

    def restart(self) -> None:
        self._digest = hashlib.sha256()

    def difference(self) -> str:
        found = self._digest.hexdigest()
        return "" if found == self._expected else f"sha256 {found}, expected {self._expected}"

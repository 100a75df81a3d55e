"""Where the shards of an open store come from: a local folder, or (``featstore.reading.cached``) the cache of a URL."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from featstore.containers import Backend, make_backend
from featstore.errors import FeatstoreError, ShardCorrupt, StoreError, StoreIncomplete, command
from featstore.files.array_types import Array, Rows
from featstore.format.artefacts import read_artefact, read_channels
from featstore.format.int8 import Channels
from featstore.format.ledger import (
    CompleteRecord,
    ShardRecord,
    complete_path,
    entry_path,
    listed_shards,
    read_complete,
    read_entry,
)
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest

T = TypeVar("T")

OPEN_TRIES = 10  # openings of a folder that changes meanwhile; then the last error is raised
CHANGE_S = 0.05  # seconds in which a version that is being published is whole


class Shards:
    """The shards of one version of a store. May be sent to another process.

    Attributes:
        path: Local folder with the store, or with the part of it that is cached.
        address: Folder or URL, for messages.
        numbers: Numbers of the shards that can be read.
        mark: Mark of a complete ledger; None where shards are missing.
        evicts: Whether objects may be removed from the folder while they are read.
    """

    evicts = False

    def __init__(
        self,
        path: Path,
        address: str,
        manifest: Manifest,
        mark: CompleteRecord | None,
        numbers: Sequence[int],
    ) -> None:
        self.path, self.address = path, address
        self.manifest, self.mark, self.numbers = manifest, mark, numbers
        self.backend: Backend = make_backend(path, manifest)
        self._entries: dict[int, ShardRecord] = {}

    def entry(self, shard: int) -> ShardRecord:
        """The ledger's record of a shard.

        Raises:
            ShardCorrupt: It is missing, does not follow the format, or is of other rows.
            StoreError: The store was replaced or changed since it was opened.
        """
        if shard not in self._entries:
            self._entries[shard] = self._read_entry(shard)
        return self._entries[shard]

    def entries(self, shards: Sequence[int]) -> list[ShardRecord]:
        """The records of some shards; see ``entry``."""
        return [self.entry(shard) for shard in shards]

    def _read_entry(self, shard: int) -> ShardRecord:
        raise NotImplementedError

    def check_unchanged(self, cause: ShardCorrupt | None = None) -> None:
        """Compare the folder with what was opened.

        Args:
            cause: Damage that was found, which may be due to a change.

        Raises:
            StoreError: Another store, another version, or another ledger lies there, or none.
        """

    def run(self, work: Callable[[], T]) -> T:
        """Do some work that reads objects.

        Args:
            work: Calls ``bring`` before it touches an object; may be done more than once. What it returns shares no
                memory with objects that may be evicted.

        Raises:
            StoreError: The store was replaced or changed since it was opened.
        """
        try:
            return work()
        except ShardCorrupt as error:
            self.check_unchanged(error)
            raise

    def read_shard(self, shard: int, column: str) -> Array:
        """One column of one shard; see ``Backend.read_shard``."""
        raise NotImplementedError

    def artefact(self, name: str) -> dict[str, Any]:
        raise NotImplementedError

    def channels(self) -> dict[str, Channels]:
        return read_channels(self.path, self.manifest)

    # What follows is for shards that are fetched and evicted; a local folder has nothing to do.

    def bring(self, column: str, shards: Rows) -> None:
        """Fetch a column of some shards, all that are needed at a time; inside of ``run``."""

    def ahead(self, columns: Sequence[str], shards: Rows) -> None:
        """Begin to fetch columns of shards that will be needed soon."""

    def note(self, column: str, rows: Rows) -> None:
        """Note that rows of a column were used just now."""

    def groups(self, column: str, shards: Sequence[int]) -> Iterable[Sequence[int]]:
        """Shards to read one after another, in groups that are fetched together."""
        return [shards]

    def on_forget(self, forget: Callable[[int], None]) -> None:
        """Call a method with the number of each shard of which an object is evicted."""


class LocalShards(Shards):
    """The shards of a local folder.

    A folder may hold another store at any time. So manifest and mark of completeness are compared with those that were
    opened before an entry of the ledger is used, and an object is only used if its bytes are those of its entry.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        mark: CompleteRecord | None,
        numbers: Sequence[int],
        files: tuple[object, ...],
    ) -> None:
        """See ``open``; ``files`` tells the manifest and the mark from others of the same names."""
        super().__init__(path, str(path), manifest, mark, numbers)
        self._files = files

    @classmethod
    def open(cls, path: Path, *, allow_incomplete: bool) -> "LocalShards":
        """Read manifest and ledger of a store: of one version, also while another is being published."""
        for _ in range(OPEN_TRIES):
            files = _files(path)
            try:
                opened = cls._open(path, files, allow_incomplete=allow_incomplete)
            except FeatstoreError:
                # Manifest and mark are renamed one after the other: between the two they disagree.
                time.sleep(CHANGE_S)
                if _files(path) == files:
                    raise
            else:
                if _files(path) == files:
                    return opened
        return cls._open(path, _files(path), allow_incomplete=allow_incomplete)

    @classmethod
    def _open(
        cls, path: Path, files: tuple[object, ...], *, allow_incomplete: bool
    ) -> "LocalShards":
        manifest = read_manifest(path)
        mark = read_complete(path, manifest.num_shards)
        numbers: Sequence[int] = range(manifest.num_shards)
        if mark is None:
            numbers = listed_shards(path, manifest.num_shards)
        missing = manifest.num_shards - len(numbers)
        if missing and not allow_incomplete:
            raise StoreIncomplete(
                f"{path}: {missing} of {manifest.num_shards} shards are missing. "
                f"{manifest.resume_advice}"
            )
        return cls(path, manifest, mark, numbers, files)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave memory maps behind; each process makes its own."""
        state = (self.path, self.manifest, self.mark, self.numbers, self._files)
        return LocalShards, state

    def _read_entry(self, shard: int) -> ShardRecord:
        def read() -> ShardRecord:
            entry = read_entry(self.path, shard)
            rows = self.manifest.shard_range(shard)
            if entry.rows != (rows.start, rows.stop):
                raise ShardCorrupt(
                    f"{entry_path(self.path, shard)}: rows {entry.rows[0]} to {entry.rows[1] - 1}, expected "
                    f"{rows.start} to {rows.stop - 1}. Delete the file and run {command('extract')} with "
                    "the same settings."
                )
            return entry

        entry = self.run(read)
        # After it was read: if the folder was replaced before that, it shows now.
        self._compare(None, newer_is_fine=True)
        return entry

    def read_shard(self, shard: int, column: str) -> Array:
        return self.run(lambda: self.backend.read_shard(shard, column, self.entry(shard).objects))

    def artefact(self, name: str) -> dict[str, Any]:
        return read_artefact(self.path, self.manifest, name)

    def check_unchanged(self, cause: ShardCorrupt | None = None) -> None:
        self._compare(cause, newer_is_fine=False)

    def _compare(self, cause: ShardCorrupt | None, *, newer_is_fine: bool) -> None:
        """See ``check_unchanged``.

        Args:
            newer_is_fine: Accept a version with more rows: those of the version that was opened are the same in it.
        """
        files = _files(self.path)
        if files == self._files:
            return
        try:
            found = read_manifest(self.path)
            mark = read_complete(self.path, found.num_shards)
        except FeatstoreError as error:
            raise StoreError(
                f"{self.path}: was deleted or replaced since it was opened ({error}) Open it again when it is back."
            ) from (cause or error)
        old = self.manifest
        if found == old and self.mark in (None, mark):
            self._files = files
        elif found == old:
            raise StoreError(
                f"{self.path}: was repaired since it was opened: {complete_path(self.path).name} is "
                f"{'missing' if mark is None else 'another one'}. Open it again."
            ) from cause
        elif not newer_is_fine or found.uuid != old.uuid or found.version < old.version:
            raise StoreError(
                f"{self.path}: is version {found.version} with {found.num_rows:,} rows (store {found.uuid}) by now; it "
                f"was opened as version {old.version} with {old.num_rows:,} rows (store {old.uuid}). Open it again."
            ) from cause


def _files(path: Path) -> tuple[object, ...]:
    """Identity of the manifest and of the mark of a complete store: changes when either is replaced."""
    return tuple(_identity(file) for file in (path / MANIFEST_NAME, complete_path(path)))


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

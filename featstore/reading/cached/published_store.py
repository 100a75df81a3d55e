"""Manifest, ledger and names of the files of a published store, which need no listing: they follow from the first two.

Both are untrusted: names in an entry are compared with those that the container would give, and every read has a
limit.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from featstore.containers import Backend
from featstore.containers.block_checksums import ADVICE
from featstore.containers.metadata import metadata_files
from featstore.errors import (
    FeatstoreError,
    RemoteError,
    RemoteNotFound,
    ShardCorrupt,
    StoreError,
    StoreIncomplete,
    StoreNotFound,
    StoreWriteError,
    command,
    shorten,
)
from featstore.files.atomic import TEMPORARY_PREFIX
from featstore.files.untrusted import MOST_JSON_BYTES, read_plain
from featstore.format import ledger
from featstore.format.artefacts import FOLDER as ARTEFACT_FOLDER
from featstore.format.artefacts import artefact_file
from featstore.format.file_names import CARD_NAME, CARD_PAGE_NAME, SIGNATURE_NAME
from featstore.format.ledger import (
    COMPLETE_NAME,
    LEDGER_FOLDER,
    CompleteRecord,
    ShardRecord,
    entry_name,
    read_complete,
)
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from featstore.places.base import Place, TooLong

MARK_NAME = f"{LEDGER_FOLDER}/{COMPLETE_NAME}"

UNFINISHED_NAME = f"{TEMPORARY_PREFIX}{MANIFEST_NAME}"
"""The manifest of a store that is being pushed: other files at the place belong to it, and there is no store yet."""

EXTRAS = {CARD_NAME: 16 * 2**20, CARD_PAGE_NAME: 2**30, SIGNATURE_NAME: 2**30}
"""Files that people and tools put beside a store's own, and the most bytes that are fetched of each: the card in
Markdown and as a page, and the signature. They travel with a whole store."""

FOLDERS = (
    LEDGER_FOLDER,
    ARTEFACT_FOLDER,
    "shards",
    "fields",
    "sample_id",
    "content_sha256",
    "valid",
    "label",
)
"""Where the other files of a store are, in any container."""

PUBLISHER = "Ask its publisher to verify the store and to push it again."

TRIES = 4  # how often something that arrives damaged is sent in all

T = TypeVar("T")


@dataclass(frozen=True)
class Contents:
    """Manifest and mark of a complete store."""

    manifest: Manifest
    manifest_bytes: bytes
    mark: CompleteRecord
    mark_bytes: bytes

    def small_names(self) -> list[str]:
        """Files besides ledger and objects, without extras."""
        return [*self.artefact_hashes(), *metadata_files(self.manifest)]

    def artefact_hashes(self) -> dict[str, str]:
        """SHA-256 of each artefact, by its path inside the store."""
        found = self.manifest.artefacts.items()
        return {artefact_file(name): record.sha256 for name, record in found}


def local_contents(store: Path) -> Contents:
    """Read manifest and mark of a local store."""
    manifest = read_manifest(store)
    mark = read_complete(store, manifest.num_shards)
    if mark is None:
        raise StoreIncomplete(
            f"{store}: not complete; only complete stores are published. Run {command('extract')} again "
            "with the settings this store was made with to resume; or take a part with featstore subset."
        )
    return Contents(manifest, read_plain(store, MANIFEST_NAME), mark, read_plain(store, MARK_NAME))


def remote_contents(place: Place) -> Contents:
    """Read manifest and mark of the store at a place.

    Raises:
        StoreIncomplete: it is still being pushed, or the push was interrupted.
    """

    def read() -> Contents | None:
        try:
            manifest_bytes = place.read(MANIFEST_NAME, most_bytes=MOST_JSON_BYTES)
        except RemoteNotFound:
            return None
        with tempfile.TemporaryDirectory() as name, url_in_errors(place.url, Path(name)):
            folder = Path(name)
            (folder / MANIFEST_NAME).write_bytes(manifest_bytes)
            manifest = read_manifest(folder)
            try:
                mark_bytes = place.read(MARK_NAME, most_bytes=MOST_JSON_BYTES)
            except RemoteNotFound:
                raise StoreIncomplete(
                    f"{place.url}: not complete; there is no {MARK_NAME}. If it is being extracted there, wait, or run "
                    "the same extraction again, which resumes; else its publisher must run featstore push again."
                ) from None
            (folder / LEDGER_FOLDER).mkdir()
            (folder / MARK_NAME).write_bytes(mark_bytes)
            mark = read_complete(folder, manifest.num_shards)
        assert mark is not None
        return Contents(manifest, manifest_bytes, mark, mark_bytes)

    found = retry_damaged(read)
    if found is None:
        raise _nothing_at(place)
    return found


def _nothing_at(place: Place) -> StoreError:
    if place.size(UNFINISHED_NAME) is not None:
        return StoreIncomplete(
            f"{place.url}: a store is being pushed there, or the push was interrupted. Wait, or have the same "
            "featstore push run again; it resumes."
        )
    return StoreNotFound(
        f"{place.url}: no {MANIFEST_NAME}, so this is not a feature store. Check the URL: it is that of the folder "
        "that featstore push was given."
    )


def retry_damaged(
    read: Callable[[], T], damaged: Callable[[str], None] = lambda text: None, advice: str = ""
) -> T:
    """Read something again that is not what it should be: it may have been damaged on the way.

    Args:
        read: raises a ``StoreError`` if it is damaged; of ``RemoteError``, only ``TooLong`` is damage.
        damaged: called each time that it was damaged, and is read again.
        advice: what to do when it is damaged every time.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return read()
        except (StoreIncomplete, StoreWriteError):
            raise
        except StoreError as error:
            if isinstance(error, RemoteError) and not isinstance(error, TooLong):
                raise
            if attempt == TRIES:
                text = f"{error.args[0]} It was so {TRIES} times. {advice}".rstrip()
                raise type(error)(text) from None
            damaged(error.args[0])
    raise AssertionError("the last attempt returns or raises")


def parse_published_entry(data: bytes, backend: Backend, shard: int, url: str) -> ShardRecord:
    """A ledger entry, as far as it can be judged without its objects.

    Raises:
        ShardCorrupt: it does not follow the format, or names what a shard of this store does not have.
    """
    where = f"{url}/{entry_name(shard)}"
    try:
        record = ledger.parse_entry(data)
    except ValueError as error:
        problem = ledger.first_problem(error)
        raise ShardCorrupt(f"{where}: not a ledger entry ({problem}).") from None
    rows = backend.manifest.shard_range(shard)
    if (record.shard, *record.rows) != (shard, rows.start, rows.stop):
        raise ShardCorrupt(
            f"{where}: is of shard {record.shard}, rows {record.rows[0]} to {record.rows[1] - 1}; expected shard "
            f"{shard}, rows {rows.start} to {rows.stop - 1}."
        )
    differing = sorted(record.objects.keys() ^ set(backend.object_names(shard)))
    if differing:
        raise ShardCorrupt(
            f"{where}: does not list the objects of this shard; the difference is {shorten(differing)}."
        )
    return record


@contextmanager
def url_in_errors(url: str, folder: Path) -> Iterator[None]:
    """Let errors about a local copy name the URL that it is a copy of, and what to do there."""
    try:
        yield
    except FeatstoreError as error:
        text = str(error)
        if str(folder) not in text:
            raise
        text = text.replace(str(folder), url).replace(ADVICE, PUBLISHER)
        raise type(error)(text) from error

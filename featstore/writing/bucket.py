"""A store that several machines write into a bucket, with nothing but the bucket in common.

Every step is one request with a condition. The manifest, each ledger entry and the mark of completeness are created if
there is none, so that one writer wins. Objects of a shard are created the same way; one that is there with other bytes
is replaced only in the version that was read, while this process holds the lease of the shard and the shard has no
entry. A kill at any moment leaves an entry with all its objects, or no entry; objects without an entry are used again
or replaced by the process that makes the shard.
"""

import base64
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from featstore.containers import make_backend
from featstore.containers.base import Backend, EncodedObject
from featstore.containers.metadata import metadata_files
from featstore.errors import (
    ConfigError,
    ManifestMismatch,
    RemoteNotFound,
    StoreIncomplete,
    StoreNotFound,
    shorten,
)
from featstore.files.atomic import TEMPORARY_PREFIX, checksum_blocks
from featstore.files.untrusted import MOST_JSON_BYTES
from featstore.format.artefacts import artefact_file, write_artefacts
from featstore.format.checksummed_json import seal, unseal
from featstore.format.ledger import (
    COMPLETE_NAME,
    ENTRY,
    LEDGER_FOLDER,
    ObjectRecord,
    complete_path,
    entry_bytes,
    entry_name,
    entry_path,
    mark_complete,
    read_entry,
)
from featstore.format.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_same_contract,
    manifest_bytes,
    read_manifest,
)
from featstore.places.base import Retry, Tag
from featstore.places.open_place import open_place
from featstore.writing.bucket_leases import BucketLeases
from featstore.writing.conditional import (
    TRIES,
    arrives_damaged,
    check_conditions,
    create_file,
    is_stored,
)
from featstore.writing.leases import LEASE_FOLDER
from featstore.writing.shard import Shard, entry_record

RETRY = Retry(attempts=10)
"""About 90 s of failed requests end a run; it resumes."""

DESIGN_NAME = f"{TEMPORARY_PREFIX}extraction.json"
"""Manifest and artefacts of a store that is being created: one object, so that those of one process are used."""

MARK_NAME = f"{LEDGER_FOLDER}/{COMPLETE_NAME}"

UPLOADS = 4
"""Objects of a shard that are sent at a time."""

LOOK_S = 2.0
"""Seconds between two listings of ledger and leases."""

MOST_PUT_MB = 4096
"""S3 takes 5 GiB in one request."""


class BucketStore:
    """A store at a URL as destination of shards, see ``Destination``. Use as a context manager.

    Attributes:
        url: Of the store.
        folder: Local copy of manifest, metadata, artefacts and mark, and of the entries that were needed; it exists
            once there is a manifest at the URL, and is deleted at the end.
    """

    def __init__(self, url: str, *, retry: Retry = RETRY) -> None:
        """See the class."""
        self.place = open_place(url, retry=retry)
        self.url = self.place.url
        if not self.place.conditional:
            raise ConfigError(
                f"{self.url}: a store is extracted to a folder, s3://, gs:// or az://. Extract to a folder, then run: "
                f"featstore push FOLDER {self.url}"
            )
        self._temporary = tempfile.TemporaryDirectory(prefix="featstore-")
        self.folder = Path(self._temporary.name) / "store"
        self._lock = threading.Lock()
        self._next_look_s = 0.0
        self._look_s = LOOK_S
        self._committed: set[int] = set()
        self._lease_tags: dict[str, str] = {}
        self._leases: BucketLeases | None = None

    def __enter__(self) -> "BucketStore":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._temporary.cleanup()

    @cached_property
    def backend(self) -> Backend:
        """The container, for encoding; its folder is the local copy."""
        return make_backend(self.folder, read_manifest(self.folder))

    @property
    def _num_shards(self) -> int:
        return self.backend.manifest.num_shards

    @property
    def complete(self) -> bool:
        """Whether the store had its mark of completeness when it was looked for last."""
        return complete_path(self.folder).exists()

    def mirror(self) -> bool:
        """Copy the manifest and what belongs to it into ``folder``; False if there is no store at the URL."""
        if self.folder.exists():
            if not self.complete:
                self._fetch_mark()
            return True
        try:
            data = self.place.read(MANIFEST_NAME, most_bytes=MOST_JSON_BYTES)
        except RemoteNotFound:
            return False
        work = self.folder.with_name("work")
        work.mkdir(exist_ok=True)
        (work / MANIFEST_NAME).write_bytes(data)
        manifest = read_manifest(work)
        (work / MANIFEST_NAME).unlink()
        make_backend(work, manifest).create()
        (work / LEDGER_FOLDER).mkdir()
        files = {
            name: self.place.read(artefact_file(name), most_bytes=record.bytes)
            for name, record in manifest.artefacts.items()
        }
        write_artefacts(work, manifest, files)
        (work / MANIFEST_NAME).write_bytes(data)
        work.rename(self.folder)
        self._fetch_mark()
        return True

    def begin(self, manifest: Manifest, artefacts: Mapping[str, bytes]) -> tuple[bool, bool]:
        """Open the store for writing, or create it; as ``featstore.writing.commit.open_or_create``.

        Returns:
            Whether there are no leases of other processes, and whether the store is complete.
        """
        there = self.mirror()
        if there:
            check_same_contract(self.folder, found=self.backend.manifest, expected=manifest)
            if self.complete:
                self.tidy()
                return True, True
        check_conditions(self.place)
        if not there:
            self._create(manifest, artefacts)
            check_same_contract(self.folder, found=self.backend.manifest, expected=manifest)
        return not self.place.entity_tags(LEASE_FOLDER), False

    def _create(self, manifest: Manifest, artefacts: Mapping[str, bytes]) -> None:
        """Create the store from the design of the process that was first.

        The design is deleted after the manifest is there. So as long as there is no manifest, there is one design, and
        every process that reads it writes the same files.
        """
        names = self.place.entity_tags("")
        foreign = sorted(name for name in names if not name.startswith(f"{LEASE_FOLDER}/"))
        if foreign and not {DESIGN_NAME, MANIFEST_NAME} & names.keys():
            raise StoreNotFound(
                f"{self.url}: holds {len(foreign):,} files but no store: {shorten(foreign)}. Choose another "
                "--store.path, or delete them."
            )
        design = {
            "manifest": base64.b64encode(manifest_bytes(manifest)).decode(),
            "artefacts": {
                name: base64.b64encode(artefacts[name]).decode() for name in manifest.artefacts
            },
        }
        for _ in range(TRIES):
            create_file(self.place, DESIGN_NAME, seal(design))
            try:
                data = self.place.read(DESIGN_NAME, most_bytes=2**32)
            except RemoteNotFound:
                data = b""
            if self.mirror():
                break
            if data:
                self._put_design(data)
        else:
            raise StoreNotFound(
                f"{self.url}: its manifest is deleted again and again. Is another process deleting the store?"
            )
        self.place.remove([DESIGN_NAME])

    def _put_design(self, content: bytes) -> None:
        """Write all files of a new store, the manifest last."""
        try:
            design = unseal(content)
            data = base64.b64decode(design["manifest"])
            files = {name: base64.b64decode(text) for name, text in design["artefacts"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreNotFound(
                f"{self.url}/{DESIGN_NAME}: damaged ({error}). Nothing was extracted yet: delete it, then run the same "
                "command again."
            ) from None
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST_NAME).write_bytes(data)
            manifest = read_manifest(Path(folder))
        first = {artefact_file(name): files[name] for name in manifest.artefacts}
        for name, content in {**first, **metadata_files(manifest)}.items():
            if not create_file(self.place, name, content):
                self.place.write(name, content)
        create_file(self.place, MANIFEST_NAME, data)

    def tidy(self) -> None:
        """Delete leases and what was left of the creation, of a store that is complete."""
        self.place.remove([*self.place.entity_tags(LEASE_FOLDER), DESIGN_NAME])

    @contextmanager
    def open(self, lease_s: float) -> Iterator[BucketLeases]:
        self._look_s = min(LOOK_S, lease_s / 10)
        with BucketLeases(self.place, self._listed_leases, lease_s=lease_s) as self._leases:
            yield self._leases

    def committed(self) -> list[int]:
        """Numbers of the shards that had an entry at the last listing, ascending."""
        if self.complete:
            return list(range(self._num_shards))
        self._look()
        return sorted(self._committed)

    def pending(self) -> list[int]:
        return sorted(set(range(self._num_shards)).difference(self.committed()))

    def was_committed(self, shard: int) -> bool:
        self._look()
        return shard in self._committed

    def is_committed(self, shard: int) -> bool:
        if shard not in self._committed and self.place.tag(entry_name(shard)) is not None:
            self._committed.add(shard)
        return shard in self._committed

    def commit(self, shard: Shard) -> bool:
        """Write the objects of a shard, then its entry; False if another process committed it, or works on it now.

        Raises:
            RemoteError: The server does not answer, refuses, or changes what it is sent.
        """
        start = time.perf_counter()
        if self.is_committed(shard.number):
            return False
        objects = self._put_objects(shard)
        if objects is None:
            return False
        record = entry_record(self.backend, shard, objects, write_s=time.perf_counter() - start)
        content, name = entry_bytes(record), entry_name(shard.number)
        if not self._holds(shard.number) or not create_file(self.place, name, content):
            return False
        entry_path(self.folder, shard.number).write_bytes(content)
        self._committed.add(shard.number)
        return True

    def _put_objects(self, shard: Shard) -> dict[str, ObjectRecord] | None:
        """Write the objects of a shard, some at a time; None if the shard is another process's now.

        Returns:
            Records in the order in which the container has the objects.
        """
        pool = ThreadPoolExecutor(UPLOADS, "featstore-upload")
        try:
            sent = {
                item.name: pool.submit(self._send, shard.number, item)
                for item in self.backend.encode(shard.number, shard.columns)
            }
            objects: dict[str, ObjectRecord] = {}
            for name, future in sent.items():
                record = future.result()
                if record is None:
                    return None
                objects[name] = record
            return objects
        finally:
            pool.shutdown(cancel_futures=True)

    def _send(self, shard: int, item: EncodedObject) -> ObjectRecord | None:
        data = b"".join(item.parts)  # type: ignore[arg-type]  # arrays are buffers
        if not self._put_object(shard, item.name, data):
            return None
        crc32c = checksum_blocks([data], item.block_bytes)
        return ObjectRecord(bytes=len(data), block_bytes=item.block_bytes, crc32c=crc32c)

    def _put_object(self, shard: int, name: str, data: bytes) -> bool:
        """Write an object, unless it is there already; False if the shard is another process's now."""
        tag: Tag | None = None
        for _ in range(TRIES):
            tag = self.place.put_if(name, data, tag) or self.place.tag(name)
            if tag is not None and is_stored(self.place, name, tag, data):
                return True
            # Of another process, whose bits may differ, or damaged on the way.
            if not self._holds(shard) or self.is_committed(shard):
                return False
        raise arrives_damaged(self.place, name)

    def _holds(self, shard: int) -> bool:
        return self._leases is not None and self._leases.holds(shard)

    def finish(self) -> None:
        """Write the mark of completeness, and delete leases; a second call changes nothing.

        Raises:
            StoreIncomplete: Entries were deleted meanwhile.
        """
        if not self._fetch_mark():
            self.fetch_entries()
            missing = [s for s in range(self._num_shards) if not self._entry(s).exists()]
            if missing:
                raise StoreIncomplete(
                    f"{self.url}: entries of shards {shorten(missing)} were deleted meanwhile. Run the same command "
                    "again: it resumes."
                )
            mark_complete(
                self.folder, (read_entry(self.folder, shard) for shard in range(self._num_shards))
            )
            content = complete_path(self.folder).read_bytes()
            if not create_file(self.place, MARK_NAME, content):
                raise ManifestMismatch(
                    f"{self.url}/{MARK_NAME}: another store was completed there meanwhile. Choose another --store.path."
                )
        self.tidy()

    def fetch_entries(self) -> None:
        """Copy all entries into ``folder``."""
        self._next_look_s = 0.0
        missing = [shard for shard in self.committed() if not self._entry(shard).exists()]

        def fetch(shard: int) -> None:
            data = self.place.read(entry_name(shard), most_bytes=MOST_JSON_BYTES)
            self._entry(shard).write_bytes(data)

        with ThreadPoolExecutor(16, "featstore-ledger") as pool:
            list(pool.map(fetch, missing))

    def _entry(self, shard: int) -> Path:
        return entry_path(self.folder, shard)

    def _fetch_mark(self) -> bool:
        try:
            data = self.place.read(MARK_NAME, most_bytes=MOST_JSON_BYTES)
        except RemoteNotFound:
            return False
        complete_path(self.folder).write_bytes(data)
        return True

    def _listed_leases(self) -> Mapping[str, str]:
        """Entity tags of the leases at the last listing, by name."""
        self._look()
        return self._lease_tags

    def _look(self) -> None:
        """List ledger and leases, unless that was done just now."""
        with self._lock:
            start = time.monotonic()
            if start < self._next_look_s:
                return
            names = [Path(name).name for name in self.place.entity_tags(LEDGER_FOLDER)]
            self._committed |= {int(name[:-5]) for name in names if ENTRY.fullmatch(name)}
            self._lease_tags = self.place.entity_tags(LEASE_FOLDER)
            end = time.monotonic()
            self._next_look_s = end + max(self._look_s, 10 * (end - start))

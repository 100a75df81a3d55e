"""Pull a store, or part of one, from a URL into a local folder; an interrupted pull resumes.

List (manifest and mark at the place), compare (with the destination folder), fetch, check, publish: the folder gets its
name when every file has arrived and was compared.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from featstore.errors import ConfigError
from featstore.files.array_types import Rows
from featstore.files.atomic import write_bytes
from featstore.files.locks import exclusive
from featstore.files.progress import Progress, no_progress
from featstore.format.ledger import complete_path
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from featstore.places.base import Place, Retry
from featstore.places.open_place import open_place
from featstore.reading.cached.published_store import (
    MARK_NAME,
    Contents,
    remote_contents,
    url_in_errors,
)
from featstore.reading.store import FeatureStore
from featstore.sharing.jobs import Job, run_jobs
from featstore.sharing.part import Part, is_part, names_rows, write_part
from featstore.sharing.partial_folder import (
    another_store,
    check_room,
    manifest_at,
    partial_folder,
    publish_folder,
    read_if_there,
    remove_remains,
    sync_folders_below,
    trust_entries,
    unfinished,
)
from featstore.sharing.progress import (
    Meter,
    TransferReport,
    counts_in_errors,
    explain_system_errors,
)
from featstore.sharing.receiver import Receiver, entries_sha256
from featstore.writing.commit import remove_leftovers


def pull(
    url: str,
    store: Path,
    *,
    part: Part = Part(),  # noqa: B008
    jobs: int = 8,
    replace: bool = False,
    dry_run: bool = False,
    retry: Retry = Retry(),  # noqa: B008
    options: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> TransferReport:
    """Download a store, resume an interrupted download, or repair a damaged copy.

    Args:
        part: Which fields and rows; the result is a store of its own.
        replace: Replace another store in the folder; unchanged files are not downloaded again, and the old one is there
            until the new one is complete.
        dry_run: Only count what would be transferred; nothing is written.

    Raises:
        ConfigError: the store has no such part, or an option is unknown.
        ManifestMismatch: another store is in the folder.
        StoreBusy: another process pulls into this folder, or writes to the store there.
    """
    with explain_system_errors("pull"):
        place = open_place(url, retry=retry, options=options)
        contents = remote_contents(place)
        store = store.resolve()  # a link to an empty folder: the folder is replaced, not the link
        old = manifest_at(store, replace=replace)
        pulling = _Pull(place, contents, store, part, jobs, Meter(progress, contents.mark.bytes))
        if not part.whole:
            part.check(contents, place.url)
        same = (
            old == contents.manifest_bytes
            if part.whole
            else old is not None and is_part(store, part, contents)
        )
        if old is not None and not same and not replace:
            raise another_store(store, place.url)
        if dry_run:
            return pulling.dry_run(same=same)
        if not same:
            manifest = pulling.fetch(old=old is not None)
        elif part.whole:
            manifest = pulling.mend()
        else:
            manifest = read_manifest(store)
        remove_remains(store, contents.manifest_bytes)
        return pulling.meter.report(place, manifest)


@dataclass
class _Pull:
    """One pull: its source, the part, and its destination."""

    place: Place
    contents: Contents
    store: Path
    part: Part
    threads: int
    meter: Meter

    def __post_init__(self) -> None:
        self.shards: range | list[int] = range(self.contents.manifest.num_shards)

    def mend(self) -> Manifest:
        """Fetch the files of a copy that are damaged or missing."""
        with exclusive(self.store), counts_in_errors(self.meter, "pull"):
            known = same_ledger(self.store, self.contents)
            if not known:
                complete_path(self.store).unlink(missing_ok=True)
            self._fetch_whole(Receiver(*self._to(self.store), trust_entries=known), self.store)
            remove_leftovers(self.store)
        return self.contents.manifest

    def fetch(self, *, old: bool) -> Manifest:
        """Fetch a store or a part, and publish it; ``old``: another store is there, and is replaced."""
        with unfinished(self.store, self.contents) as folder, counts_in_errors(self.meter, "pull"):
            known = trust_entries(folder, self.contents)
            if not self.part.whole:
                manifest = self._fetch_part(folder, known, old=old)
                shutil.rmtree(folder)
                return manifest
            if not old:
                check_room(folder, self.contents.mark.bytes)
            donor = self.store if old else None
            receiver = Receiver(*self._to(folder), donor=donor, trust_entries=known)
            self._fetch_whole(receiver, folder)
            publish_folder(folder, self.store, old=old)
        return self.contents.manifest

    def dry_run(self, *, same: bool) -> TransferReport:
        """Count what would be fetched; sample ids are fetched into a temporary folder where patterns choose rows."""
        with counts_in_errors(self.meter, "pull"), tempfile.TemporaryDirectory() as temporary:
            folder = self.store if same else partial_folder(self.store)
            if not self.part.whole:
                manifest = self.contents.manifest
                self.shards = self.part.shards(manifest, self.part.span(manifest))
            if self.part.where and not same:
                folder = Path(temporary)
                self._fetch_ids(folder, known=False)
            if self.part.whole or not same:
                donor = self.store if self.part.whole and not same else None
                receiver = Receiver(*self._to(folder), donor=donor, dry_run=True)
                self._run(receiver.jobs(self.shards, None if self.part.whole else self.part.wants))
                if self.part.whole:
                    self._keep_marks(receiver)
        return self.meter.report(self.place, self.contents.manifest, dry_run=True)

    def _to(self, folder: Path) -> tuple[Place, Contents, Path, Meter]:
        return self.place, self.contents, folder, self.meter

    def _fetch_whole(self, receiver: Receiver, folder: Path) -> None:
        self._run(receiver.jobs(self.shards))
        receiver.finish()
        sync_folders_below(folder)
        self._keep_marks(receiver)

    def _keep_marks(self, receiver: Receiver) -> None:
        """The manifest comes last: it makes the folder a store."""
        receiver.keep(MARK_NAME, self.contents.mark_bytes)
        receiver.keep(MANIFEST_NAME, self.contents.manifest_bytes)

    def _fetch_part(self, folder: Path, known: bool, *, old: bool) -> Manifest:
        """Fetch what a part needs into a folder, write the part into another one, and publish that."""
        write_bytes(folder / MANIFEST_NAME, self.contents.manifest_bytes)
        rows: Rows | range = self.part.span(self.contents.manifest)
        if self.part.where:
            try:
                rows = self._fetch_ids(folder, known)
            except ConfigError:  # no row matches: what was fetched is of no use
                shutil.rmtree(folder)
                raise
        self.shards = self.part.shards(self.contents.manifest, rows)
        size = self.contents.mark.bytes * len(self.shards) // self.contents.manifest.num_shards
        self.meter.expect(size)
        check_room(folder, size)
        receiver = Receiver(*self._to(folder), trust_entries=known)
        self._run(receiver.jobs(self.shards, self.part.wants))
        out = folder.with_suffix(".part")
        store = FeatureStore.open(folder, allow_incomplete=True)
        manifest = write_part(store, self.part, rows, self.contents, out)
        publish_folder(out, self.store, old=old)
        return manifest

    def _fetch_ids(self, folder: Path, known: bool) -> Rows | range:
        """Fetch the sample ids of the rows, and choose among them; sets the shards that are needed."""
        write_bytes(folder / MANIFEST_NAME, self.contents.manifest_bytes)
        manifest = self.contents.manifest
        # Ids of the first rows are shown where nothing matches.
        shards = sorted({0, *self.part.shards(manifest, self.part.span(manifest))})
        self.meter.expect(0)
        receiver = Receiver(*self._to(folder), trust_entries=known)
        self._run(receiver.shard_jobs(shards, names_rows))
        with url_in_errors(self.place.url, folder):
            rows = self.part.choose(FeatureStore.open(folder, allow_incomplete=True))
        self.shards = self.part.shards(manifest, rows)
        return rows

    def _run(self, jobs: Iterator[Job]) -> None:
        run_jobs(jobs, threads=self.threads, stop=self.place.stop)


def same_ledger(store: Path, contents: Contents) -> bool:
    """Whether a store's entries are those of another copy, as their hash says."""
    expected = contents.mark.entries_sha256
    if not expected or read_if_there(store, MARK_NAME) != contents.mark_bytes:
        return False
    return entries_sha256(store, contents.mark.shards) == expected

"""Push a store to a URL: only files that are missing or different there are sent; an interrupted push resumes.

List (the files at the place), compare, send, check, publish: ``manifest.json`` is written last, so that no reader finds
half a store. Until then a copy of it lies there as ``.partial-manifest.json``, which says whose files those are.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featstore.errors import (
    ManifestMismatch,
    RemoteError,
    RemoteNotFound,
    ShardCorrupt,
    StoreError,
    shorten,
)
from featstore.files.atomic import TEMPORARY_PREFIX
from featstore.files.progress import Progress, no_progress
from featstore.files.untrusted import MOST_JSON_BYTES
from featstore.format.file_names import SIGNATURE_NAME
from featstore.format.ledger import LEDGER_FOLDER
from featstore.format.manifest import MANIFEST_NAME
from featstore.maintenance.signing import changed_since_signed
from featstore.places.base import Place, Retry, TooLong
from featstore.places.open_place import open_place
from featstore.reading.cached.published_store import (
    MARK_NAME,
    TRIES,
    UNFINISHED_NAME,
    local_contents,
    remote_contents,
)
from featstore.reading.store import FeatureStore
from featstore.sharing.jobs import run_jobs
from featstore.sharing.part import NOTE, Part, write_part
from featstore.sharing.progress import (
    Meter,
    TransferReport,
    counts_in_errors,
    explain_system_errors,
)
from featstore.sharing.sender import Sender
from featstore.sharing.verify_url import check_there


def push(
    store: Path,
    url: str,
    *,
    part: Part = Part(),  # noqa: B008
    jobs: int = 8,
    read_back: bool = True,
    replace: bool = False,
    dry_run: bool = False,
    retry: Retry = Retry(),  # noqa: B008
    options: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> TransferReport:
    """Publish a store, resume an interrupted push, or repair a published store that is damaged.

    Args:
        part: Which fields and rows; the part is written beside the store first, and removed after the push.
        read_back: Read what is at the place, uploads too, and compare it with the ledger; else only sizes are compared.
        replace: Replace another store there; neither can be read until the push is complete.
        dry_run: Only count what would be sent; nothing is written at the place.

    Raises:
        ConfigError: the store has no such part, or an option is unknown.
        ManifestMismatch: another store is there.
        StoreError: the folder there holds other files, or the signature is of other files.
    """
    with explain_system_errors("push"):
        place = open_place(url, retry=retry, options=options)
        if not place.writes:
            raise RemoteError(
                f"{place.url}: can only be read. Push to s3://, gs://, az://, sftp://, hf:// or a folder; what a web "
                "server shows is a folder somewhere."
            )
        pushing = _Push(place, jobs, read_back, replace, dry_run, progress)
        return pushing.whole(store) if part.whole else pushing.part(store, part)


@dataclass(frozen=True)
class _Push:
    """One push: its destination and its options."""

    place: Place
    threads: int
    read_back: bool
    replace: bool
    dry_run: bool
    progress: Progress

    def part(self, store: Path, part: Part) -> TransferReport:
        """Push a part of a store, which is written beside it first."""
        contents = local_contents(store)
        part.check(contents, str(store))
        found = None if self.place.size(MANIFEST_NAME) is None else remote_contents(self.place)
        scratch = _scratch(store, part.note(contents)[NOTE] + self.place.url)
        if found is not None and not self.replace:
            if not part.is_in(found.manifest, contents):
                raise _another_store(self.place, store)
            meter = Meter(self.progress, found.mark.bytes)
            if self.read_back:
                check_there(self.place, found, threads=self.threads)
            shutil.rmtree(scratch, ignore_errors=True)
            return meter.report(self.place, found.manifest, dry_run=self.dry_run)
        opened = FeatureStore.open(store)
        write_part(opened, part, part.choose(opened), contents, scratch)
        report = self.whole(scratch)
        shutil.rmtree(scratch)
        return report

    def whole(self, store: Path) -> TransferReport:
        place, contents = self.place, local_contents(store)
        if changed := changed_since_signed(store):
            raise StoreError(
                f"{store}: {SIGNATURE_NAME} is not of its files: {shorten(changed)} changed since. Run featstore sign "
                f"again, or remove {store / SIGNATURE_NAME}."
            )
        ours = contents.manifest_bytes
        manifest, begun = (
            _read_again(place, name, ours) for name in (MANIFEST_NAME, UNFINISHED_NAME)
        )
        # Where a push of this very store was begun, a manifest that is another one arrived damaged.
        others = begun != ours and bool({manifest, begun} - {None, ours})
        if others and not self.replace:
            raise _another_store(place, store)
        mark = _read_again(place, MARK_NAME, contents.mark_bytes)
        same = (manifest, mark) == (ours, contents.mark_bytes)
        meter = Meter(self.progress, contents.mark.bytes, 2 if self.read_back else 1)
        there = place.sizes()
        # Entries that no push of this store has written say nothing about the objects there, though they be equal.
        stale = [] if same or begun == ours else [n for n in there if n.startswith(LEDGER_FOLDER)]
        there = {name: size for name, size in there.items() if name not in set(stale)}
        sender = Sender(
            store,
            contents,
            place,
            meter,
            read_back=self.read_back,
            there=there,
            same=same,
            dry_run=self.dry_run,
        )
        with counts_in_errors(meter, "push"):
            if manifest is None and begun is None:
                _check_free(place, sender.others())
            if not self.dry_run:
                if manifest is not None and not same:
                    place.remove([MANIFEST_NAME, MARK_NAME])
                place.remove([*stale, *sender.leftovers()])
                if not same:
                    sender.write_small(UNFINISHED_NAME, ours, counted=False)
            run_jobs(sender.jobs(), threads=self.threads, stop=place.stop)
            self._remove_stale(sender, meter, same=same)
            if local_contents(store) != contents:
                raise StoreError(f"{store}: was changed meanwhile; {place.url} is no store yet.")
            for name, data in ((MARK_NAME, contents.mark_bytes), (MANIFEST_NAME, ours)):
                if same:
                    meter.announce(len(data))
                    meter.skip(len(data))
                    continue
                try:
                    sender.write_small(name, data)
                except ShardCorrupt:
                    place.remove([name])
                    raise
            if not self.dry_run:
                place.remove([] if same else [UNFINISHED_NAME])
                place.finish()
        return meter.report(place, contents.manifest, dry_run=self.dry_run)

    def _remove_stale(self, sender: Sender, meter: Meter, *, same: bool) -> None:
        """Remove what a replaced store has left at the place: objects, its card and its signature."""
        stale = sender.stale_extras()
        if not self.replace or same:
            # Of this very store, or put there by hand; but a signature does not hold once a new card was sent.
            stale = [name for name in stale if name == SIGNATURE_NAME and sender.sent_extra]
        for name in stale:
            meter.note(f"{name} at {self.place.url} is not of this store, and was removed there")
        if not self.dry_run:
            self.place.remove([*(sender.foreign() if self.replace else []), *stale])


def _scratch(store: Path, what: str) -> Path:
    """Where a part of a store is written; the same command finds it again."""
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return store.resolve().parent / f"{TEMPORARY_PREFIX}{store.resolve().name}.push.{digest}"


def _read_again(place: Place, name: str, ours: bytes) -> bytes | None:
    """Read a small file at a place; one that is not ours may be damaged, and is read until it is the same twice."""
    before, found = None, _read_if_there(place, name)
    for _ in range(TRIES):
        if found in (None, ours, before):
            break
        before, found = found, _read_if_there(place, name)
    return found


def _read_if_there(place: Place, name: str) -> bytes | None:
    try:
        return place.read(name, most_bytes=MOST_JSON_BYTES)
    except RemoteNotFound:
        return None
    except TooLong:
        return b""


def _another_store(place: Place, store: Path) -> ManifestMismatch:
    return ManifestMismatch(
        f"{place.url}: another store, or a part of one, is there, so {store} was not pushed. Choose another URL, or "
        "replace it with --replace."
    )


def _check_free(place: Place, others: Sequence[str]) -> None:
    """A new store goes into a folder of its own, so that other files are not taken for its."""
    foreign = [name for name in others if not name.rpartition("/")[2].startswith(".")]
    if foreign:
        raise StoreError(
            f"{place.url}: holds {len(foreign):,} other files: {shorten(foreign)}. Push into a folder of its own."
        )

"""Push a store to a URL, pull one from a URL: only what is missing or different travels, and both can be interrupted.

A reader never meets half a store. At a place ``manifest.json`` is written last; until then a copy of it lies there
under ``.partial-manifest.json``, which says whose files those are. How a local folder grows is in ``landing``.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from featstore.files.atomic import TEMPORARY_PREFIX, write_bytes
from featstore.containers.base import Rows
from featstore.errors import (
    ConfigError,
    ManifestMismatch,
    RemoteError,
    RemoteNotFound,
    ShardCorrupt,
    StoreError,
    shorten,
)
from featstore.format.ledger import complete_path
from featstore.files.locks import exclusive
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from featstore.files.untrusted import MOST_JSON_BYTES
from featstore.reading.store import FeatureStore
from featstore.places.base import Place, Retry, TooLong
from featstore.sharing.worker_threads import work_off
from featstore.reading.cached.published_store import (
    MARK_NAME,
    TRIES,
    UNFINISHED_NAME,
    Contents,
    local_contents,
    remote_contents,
    speaking_of,
)
from featstore.sharing.partial_folder import (
    another_store,
    check_room,
    give_name,
    manifest_at,
    same_ledger,
    sync_folders_below,
    trust_entries,
    unfinished,
)
from featstore.sharing.part import NOTE, Part, is_part, names_rows, write_part
from featstore.places.open_place import open_place
from featstore.sharing.receiver import Receiver
from featstore.sharing.progress import Meter, Progress, Report, no_progress
from featstore.sharing.sender import Sender


def push(
    store: Path,
    url: str,
    *,
    part: Part = Part(),  # noqa: B008
    jobs: int = 8,
    read_back: bool = True,
    replace: bool = False,
    retry: Retry = Retry(),  # noqa: B008
    options: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Bring a store to a place; go on with what was begun.

    Args:
        store: folder of a complete store.
        url: see ``featstore.places.open_place.open_place``.
        part: which fields and rows; it is written beside the store first, and removed when it was pushed.
        jobs: files that travel at once.
        read_back: read what was sent and compare it with the ledger; else the transport is trusted.
        replace: also where another store is; that one is none any more from the beginning on.
        retry: how often a failed request is made again.
        options: of the client.
        progress: called as bytes travel.

    Raises:
        ConfigError: the store has no such part, or does not know an option.
        StoreNotFound, StoreIncomplete, ShardCorrupt: the local store is none, or not whole.
        ManifestMismatch: another store is there.
        StoreError: the folder there holds other files.
        RemoteError: the place does not answer, refuses, or damages what is sent.
    """
    place = open_place(url, retry=retry, options=options)
    if not place.writes:
        raise RemoteError(
            f"{place.url}: can only be read. Push to s3://, gs://, sftp://, hf:// or a folder; what a web server shows "
            "is a folder somewhere."
        )
    if part.whole:
        return _push(store, place, jobs, read_back, replace, progress)
    contents = local_contents(store)
    part.check(contents, str(store))
    found = None if place.size(MANIFEST_NAME) is None else remote_contents(place)
    if found is not None and part.is_in(found.manifest, contents):
        return _report(Meter(progress, 0), place, found.manifest)
    if found is not None and not replace:
        raise _another_store(place, store)
    scratch = _scratch(store, part.note(contents)[NOTE] + place.url)
    opened = FeatureStore.open(store)
    write_part(opened, part, part.choose(opened), contents, scratch)
    report = _push(scratch, place, jobs, read_back, replace, progress)
    shutil.rmtree(scratch)
    return report


def _scratch(store: Path, what: str) -> Path:
    """Where a part of a store is written, found again by the same command."""
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return store.resolve().parent / f"{TEMPORARY_PREFIX}{store.resolve().name}.push.{digest}"


def _push(
    store: Path, place: Place, jobs: int, read_back: bool, replace: bool, progress: Progress
) -> Report:
    contents = local_contents(store)
    ours = contents.manifest_bytes
    manifest, begun = (_read_again(place, name, ours) for name in (MANIFEST_NAME, UNFINISHED_NAME))
    # Where a push of this very store was begun, a manifest that is another one arrived damaged.
    others = begun != ours and bool({manifest, begun} - {None, ours})
    if others and not replace:
        raise _another_store(place, store)
    mark = _read_again(place, MARK_NAME, contents.mark_bytes)
    same = (manifest, mark) == (ours, contents.mark_bytes)
    if manifest is not None and not same:
        place.remove([MANIFEST_NAME, MARK_NAME])
    meter = Meter(progress, contents.mark.bytes)
    there = place.sizes()
    sender = Sender(
        store,
        contents,
        place,
        meter,
        read_back=read_back,
        there=there,
        same_ledger=same,
    )
    with _saying_how_far(place, meter, "push"):
        if manifest is None and begun is None:
            _check_free(place, sender.others())
        if not same:
            sender.write_small(UNFINISHED_NAME, ours)
        work_off(sender.jobs(), threads=jobs, stop=place.stop)
        if others:
            place.remove(sender.foreign())
        if local_contents(store) != contents:
            raise StoreError(f"{store}: was changed meanwhile; {place.url} is no store yet.")
        if not same:
            sender.write_small(MARK_NAME, contents.mark_bytes)
            try:
                sender.write_small(MANIFEST_NAME, ours)
            except ShardCorrupt:
                place.remove([MANIFEST_NAME])
                raise
        # Files that a killed push was writing; on object stores there are none.
        place.remove(name for name in there if name.startswith(TEMPORARY_PREFIX))
        if not same:
            place.remove([UNFINISHED_NAME])
        place.finish()
    return _report(meter, place, contents.manifest)


def pull(
    url: str,
    store: Path,
    *,
    part: Part = Part(),  # noqa: B008
    jobs: int = 8,
    replace: bool = False,
    retry: Retry = Retry(),  # noqa: B008
    options: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Bring a store from a place; go on with what was begun, and mend a copy that is damaged.

    Args:
        url: see ``featstore.places.open_place.open_place``.
        store: folder that it becomes.
        part: which fields and rows; the result is a store of its own.
        jobs: files that travel at once.
        replace: also where another store is; what both have does not travel, and the old one is there to the end.
        retry: how often a failed request is made again.
        options: of the client.
        progress: called as bytes travel.

    Raises:
        ConfigError: the store has no such part, or does not know an option.
        StoreNotFound, StoreIncomplete, ShardCorrupt: there is no store at the place, or it is not whole.
        ManifestMismatch: another store is in the folder.
        StoreBusy: somebody else pulls into this folder, or writes to the store there.
        RemoteError: the place does not answer, or refuses.
        StoreWriteError: the disk refused, or has no room.
    """
    place = open_place(url, retry=retry, options=options)
    contents = remote_contents(place)
    meter = Meter(progress, contents.mark.bytes)
    store = store.resolve()  # a link to an empty folder: the folder is replaced, not the link
    old = manifest_at(store, replace=replace)
    if not part.whole:
        part.check(contents, place.url)
        if old is not None and is_part(store, part, contents):
            return _report(meter, place, read_manifest(store))
    elif old == contents.manifest_bytes:
        with exclusive(store):
            known = same_ledger(store, contents)
            if not known:
                complete_path(store).unlink(missing_ok=True)
            receiver = Receiver(place, contents, store, meter, trust_entries=known)
            _receive(receiver, place, contents, store, meter, jobs)
            (store / UNFINISHED_NAME).unlink(missing_ok=True)
        return _report(meter, place, contents.manifest)
    if old is not None and not replace:
        raise another_store(store, place.url)
    with unfinished(store, contents) as folder:
        known = trust_entries(folder, contents)
        if not part.whole:
            out = folder.with_suffix(".part")
            try:
                manifest = _receive_part(place, contents, part, folder, out, meter, jobs, known)
            except ConfigError:  # no row matches: what came is of no use
                shutil.rmtree(folder)
                raise
            give_name(out, store, old=old is not None)
            shutil.rmtree(folder)
            return _report(meter, place, manifest)
        donor = None if old is None else store
        if donor is None:
            check_room(folder, contents.mark.bytes)
        receiver = Receiver(place, contents, folder, meter, donor=donor, trust_entries=known)
        _receive(receiver, place, contents, folder, meter, jobs)
        give_name(folder, store, old=old is not None)
    return _report(meter, place, contents.manifest)


def _receive_part(
    place: Place,
    contents: Contents,
    part: Part,
    folder: Path,
    out: Path,
    meter: Meter,
    jobs: int,
    known: bool,
) -> Manifest:
    """Bring what a part needs into a folder, and write the part into another one."""
    manifest = contents.manifest
    write_bytes(folder / MANIFEST_NAME, contents.manifest_bytes)
    rows: Rows | range = part.span(manifest)
    with _saying_how_far(place, meter, "pull"):
        if part.where:
            # Ids of the first rows are shown where nothing matches.
            shards = sorted({0, *part.shards(manifest, rows)})
            meter.expect(0)
            receiver = Receiver(place, contents, folder, meter, trust_entries=known)
            receiver.clear()
            work_off(receiver.shard_jobs(shards, names_rows), threads=jobs, stop=place.stop)
            with speaking_of(place.url, folder):
                rows = part.choose(FeatureStore.open(folder, allow_incomplete=True))
        shards = part.shards(manifest, rows)
        size = contents.mark.bytes * len(shards) // manifest.num_shards
        meter.expect(size)
        check_room(folder, size)
        receiver = Receiver(place, contents, folder, meter, trust_entries=known)
        receiver.clear()
        everything = chain(receiver.artefact_jobs(), receiver.shard_jobs(shards, part.wants))
        work_off(everything, threads=jobs, stop=place.stop)
    store = FeatureStore.open(folder, allow_incomplete=True)
    return write_part(store, part, rows, contents, out)


def _read_again(place: Place, name: str, ours: bytes) -> bytes | None:
    """A small file at a place; one that is not ours is read until it is the same twice, as answers may be damaged."""
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
        f"{place.url}: another store, or a half of one, is there, so {store} was not pushed. Choose another URL, or "
        "put this store into its place with --replace."
    )


def _check_free(place: Place, others: Sequence[str]) -> None:
    """A new store goes into a folder of its own, so that nobody's files are taken for its."""
    foreign = [name for name in others if not name.rpartition("/")[2].startswith(".")]
    if foreign:
        raise StoreError(
            f"{place.url}: holds {len(foreign):,} other files: {shorten(foreign)}. Push into a folder of its own."
        )


def _receive(
    receiver: Receiver, place: Place, contents: Contents, folder: Path, meter: Meter, jobs: int
) -> None:
    """Make a folder the store that is at the place; its manifest comes last."""
    receiver.clear()

    everything = chain(
        receiver.metadata_jobs(),
        receiver.artefact_jobs(),
        receiver.extra_jobs(),
        receiver.shard_jobs(range(contents.manifest.num_shards), lambda name: True),
    )
    with _saying_how_far(place, meter, "pull"):
        work_off(everything, threads=jobs, stop=place.stop)
        receiver.check_entries()
    sync_folders_below(folder)
    write_bytes(folder / MARK_NAME, contents.mark_bytes)
    write_bytes(folder / MANIFEST_NAME, contents.manifest_bytes)


@contextmanager
def _saying_how_far(place: Place, meter: Meter, command: str) -> Iterator[None]:
    """Say with an error what is done so far."""
    try:
        yield
    except StoreError as error:
        done = f"So far {meter.so_far()}; the same featstore {command} goes on from there."
        raise type(error)(f"{error.args[0]} {done}") from error.__cause__


def _report(meter: Meter, place: Place, manifest: Manifest) -> Report:
    return meter.report(url=place.url, fingerprint=manifest.fingerprint, rows=manifest.num_rows)

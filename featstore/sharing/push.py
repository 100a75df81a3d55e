"""Push a store to a URL, pull one from a URL: only what is missing or different travels, and both can be interrupted.

A reader never meets half a store. At a place ``manifest.json`` is written last; until then a copy of it lies there
under ``.partial-manifest.json``, which says whose files those are. How a local folder grows is in ``landing``.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from featstore.files.untrusted import MOST_JSON_BYTES
from featstore.format.manifest import MANIFEST_NAME, Manifest
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
from featstore.sharing.part import NOTE, Part, write_part
from featstore.sharing.progress import Meter, Progress, Report, no_progress
from featstore.sharing.sender import Sender
from featstore.sharing.worker_threads import work_off


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

"""Pull a store, or part of one, from a URL into a local folder; an interrupted pull resumes."""

import shutil
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from featstore.containers.base import Rows
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes
from featstore.files.locks import exclusive
from featstore.format.ledger import complete_path
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from featstore.places.base import Place, Retry
from featstore.places.open_place import open_place
from featstore.reading.cached.published_store import (
    MARK_NAME,
    UNFINISHED_NAME,
    Contents,
    remote_contents,
    speaking_of,
)
from featstore.reading.store import FeatureStore
from featstore.sharing.part import Part, is_part, names_rows, write_part
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
from featstore.sharing.progress import Meter, Progress, Report, no_progress
from featstore.sharing.push import _report, _saying_how_far
from featstore.sharing.receiver import Receiver
from featstore.sharing.worker_threads import work_off


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

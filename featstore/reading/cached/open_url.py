"""Open the version of a store that is at a URL, in the local folder of that version."""

import hashlib
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from featstore.containers import make_backend
from featstore.errors import RemoteError, StoreIncomplete, StoreNotFound
from featstore.files.atomic import TEMPORARY_PREFIX, refused
from featstore.files.untrusted import (
    MOST_JSON_BYTES,
    check_real_folder,
    make_real_folders,
    read_plain,
)
from featstore.format.ledger import LEDGER_FOLDER, complete_path, read_complete
from featstore.format.manifest import MANIFEST_NAME, Manifest, read_manifest
from featstore.places.base import Place
from featstore.places.open_place import open_place
from featstore.reading.cached.cache import Cache, CacheConfig
from featstore.reading.cached.mirror import Mirror
from featstore.reading.cached.published_store import MARK_NAME, remote_contents, url_in_errors

_VERSION = re.compile(r"[0-9a-f]{16}")  # names of the folders of versions

_URL, _LATEST = "url", "latest"
"""Files beside the folders of the versions of a store: its URL, and which of them was opened last."""


def open_mirror(url: str, config: CacheConfig | None = None, *, allow_incomplete: bool) -> Mirror:
    """Read the version of the store at a URL, and make or find its folder.

    Args:
        allow_incomplete: also where shards are missing.

    Raises:
        ManifestMismatch: another version of the format.
    """
    config = config or CacheConfig()
    cache = Cache(config)
    url = url.rstrip("/")
    of_url = cache.stores / hashlib.sha256(url.encode()).hexdigest()[:16]
    if config.offline:
        return _open_offline(url, of_url, config, allow_incomplete)
    place = open_place(url, retry=config.retry)
    try:
        manifest, mark = _read_version(place, allow_incomplete)
    except RemoteError as error:
        if (of_url / _LATEST).exists():
            raise RemoteError(
                f"{error} What was read of this store before is in the cache: FEATSTORE_OFFLINE=1 reads it."
            ) from error
        raise
    folder = of_url / hashlib.sha256(manifest + mark).hexdigest()[:16]
    with refused(of_url, 0):
        make_real_folders(cache.stores, of_url)
        check_real_folder(folder)
        if not _is_intact(folder, manifest, mark):
            with cache.alone():
                if not _is_intact(folder, manifest, mark):
                    shutil.rmtree(folder, ignore_errors=True)
                    _make_folder(folder, manifest, mark, place.url)
        _note(of_url / _URL, place.url)
        _note(of_url / _LATEST, folder.name)
    mirror = _mirror(url, place.url, folder, config)
    if not mirror.shards:
        mirror.shards = _listed(place, mirror.manifest)
    return _checked(mirror, allow_incomplete)


def _read_version(place: Place, allow_incomplete: bool) -> tuple[bytes, bytes]:
    """The manifest and the mark of completeness, b"" where there is none; both of one store."""
    try:
        found = remote_contents(place)
    except StoreIncomplete:
        if not allow_incomplete:
            raise
        return place.read(MANIFEST_NAME, most_bytes=MOST_JSON_BYTES), b""
    return found.manifest_bytes, found.mark_bytes


def _is_intact(folder: Path, manifest: bytes, mark: bytes) -> bool:
    """Whether a folder is there; a power failure may have left it without its content."""
    try:
        found = read_plain(folder, MARK_NAME) if mark else b""
        return read_plain(folder, MANIFEST_NAME) == manifest and found == mark
    except OSError:
        return False


def _note(path: Path, text: str) -> None:
    """Write a line, unless it is there; others may be reading it."""
    with suppress(OSError):
        if path.read_text() == text:
            return
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(name).replace(path)


def _make_folder(folder: Path, manifest: bytes, mark: bytes, url: str) -> None:
    """Make the folder of a version, as a whole or not at all."""
    work = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))
    try:
        (work / MANIFEST_NAME).write_bytes(manifest)
        with url_in_errors(url, work):
            found = read_manifest(work)
        made = work / "store"
        made.mkdir()
        make_backend(made, found).create()
        (work / MANIFEST_NAME).rename(made / MANIFEST_NAME)
        (made / LEDGER_FOLDER).mkdir()
        if mark:
            complete_path(made).write_bytes(mark)
        made.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open_offline(url: str, of_url: Path, config: CacheConfig, allow_incomplete: bool) -> Mirror:
    try:
        version, shown = (read_plain(of_url, name).decode() for name in (_LATEST, _URL))
        folder = of_url / version
        if not _VERSION.fullmatch(version):
            raise ValueError(version)
        check_real_folder(folder)
    except (OSError, ValueError):
        raise StoreNotFound(
            f"{url}: nothing of it is in the cache ({config.folder}), and FEATSTORE_OFFLINE is set. Unset it, and open "
            "it once with a connection."
        ) from None
    mirror = _mirror(url, shown, folder, config)
    if not mirror.shards:
        names = (folder / LEDGER_FOLDER).glob("[0-9]*.json")
        mirror.shards = sorted(int(path.stem) for path in names)
    return _checked(mirror, allow_incomplete)


def _mirror(url: str, shown: str, folder: Path, config: CacheConfig) -> Mirror:
    with url_in_errors(shown, folder):
        manifest = read_manifest(folder)
        mark = read_complete(folder, manifest.num_shards)
        version = {
            name: hashlib.sha256(read_plain(folder, name)).hexdigest()
            for name in ([MANIFEST_NAME, MARK_NAME] if mark else [MANIFEST_NAME])
        }
    shards = range(manifest.num_shards if mark else 0)
    return Mirror(url, shown, folder, config, manifest, shards, version)


def _listed(place: Place, manifest: Manifest) -> list[int]:
    """Shards that have an entry at a place where no mark says that all have."""
    if not place.lists:
        return []
    names = [Path(name) for name in place.sizes(LEDGER_FOLDER)]
    shards = [int(name.stem) for name in names if name.suffix == ".json" and name.stem.isdecimal()]
    return sorted(shard for shard in shards if shard < manifest.num_shards)


def _checked(mirror: Mirror, allow_incomplete: bool) -> Mirror:
    missing = mirror.manifest.num_shards - len(mirror.shards)
    if missing and not allow_incomplete:
        raise StoreIncomplete(
            f"{mirror.url}: {missing} of {mirror.manifest.num_shards} shards are not there yet, as far as its server "
            "says. Ask its publisher to finish it and to push it again."
        )
    return mirror

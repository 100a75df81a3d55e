"""Open stores at any place, send and fetch them, check them, and write them for other tools."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featstore.api.arguments import Address, Folder, address_of, folder_of
from featstore.cli.progress_bar import progress_bar
from featstore.places.open_place import is_url
from featstore.reading.store import FeatureStore

if TYPE_CHECKING:
    from featstore.derive.export import Exported
    from featstore.maintenance.verify import VerifyReport
    from featstore.reading.cached.cache import CacheConfig
    from featstore.sharing.progress import TransferReport


def open(
    path: Folder, *, allow_incomplete: bool = False, cache: "CacheConfig | None" = None
) -> FeatureStore:
    """Open a store, at a folder or at a URL, and check all that can be checked without reading features.

    Args:
        path: Folder or URL of the store. At a URL, shards are downloaded when they are read and kept in a cache that
            all processes share.
        allow_incomplete: Also open a store whose extraction has not finished; its missing rows count as invalid.
        cache: Folder and byte limit of the cache of stores at URLs; by default from the environment
            (``FEATSTORE_CACHE``, ``FEATSTORE_CACHE_BYTES``).

    Returns:
        The store, read-only. ``store.gather("cls", rows)`` gives an array of shape (rows, views, ...).

    Raises:
        StoreIncomplete: Shards are missing.
        RemoteError: The URL cannot be read.

    Examples:
        >>> store = featstore.open("stores/photos")
        >>> store.gather("cls", [0, 1]).shape
        (2, 3, 4)
    """
    return FeatureStore.open(address_of(path), allow_incomplete=allow_incomplete, cache=cache)


def verify(
    store: Address,
    *,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> "VerifyReport":
    """Compare a store with its checksums and with its manifest. Nothing is changed.

    Args:
        store: Folder or URL of the store. At a URL bytes are compared, not what they mean.
        sample: Check so many random blocks instead of every byte; takes the same time for any size of store.
        seed: Seed of the sample.
        workers: Threads that read.

    Returns:
        The findings: ``sound``, ``complete``, ``damages``.

    Examples:
        >>> report = featstore.verify("stores/photos")
        >>> report.sound, report.damages
        (True, [])
    """
    from featstore.maintenance.verify import verify
    from featstore.sharing.verify_url import verify_url

    text = address_of(store)
    with progress_bar(" blocks" if sample else " shards", show=progress) as report:
        if is_url(text):
            return verify_url(text, sample=sample, seed=seed, progress=report)
        return verify(folder_of(store), sample=sample, seed=seed, workers=workers, progress=report)


def repair(store: Address, *, workers: int = 2) -> list[int]:
    """Remove damaged shards from a store, so that the next extraction makes exactly these again.

    Metadata files are written again. ``featstore.extract(..., repair=True)`` does both steps.

    Args:
        store: Folder of the store.
        workers: Threads that read.

    Returns:
        Numbers of the shards that have to be made again.

    Raises:
        StoreError: There is damage that only another copy of the store can replace; nothing was changed.

    Examples:
        >>> featstore.repair("stores/photos")
        []
    """
    from featstore.maintenance.verify import repair

    return repair(folder_of(store), workers=workers)


def export(
    store: Address,
    out: Folder,
    *,
    format: Literal["npy", "parquet", "hf"],
    fields: Sequence[str] | None = None,
    where: Sequence[str] = (),
    canonical: bool = False,
    float32: bool = False,
    keep_invalid: bool = False,
    progress: bool = True,
) -> "Exported":
    """Write features for tools that do not read stores: npy arrays, Parquet files or a Hugging Face data set.

    Args:
        store: A complete store, also at a URL.
        out: Folder to write.
        format: ``"npy"`` gives one array per field and the ids as text, ``"parquet"`` tables, ``"hf"`` a data set for
            ``datasets.load_from_disk``.
        fields: Names of the fields to take; all by default.
        where: Shell patterns over sample ids; a row is taken if any of them matches.
        canonical: Write the canonical view only; arrays then have no view axis.
        float32: Write float16 as float32 too. bfloat16 and int8 always become float32.
        keep_invalid: Also write images without features, as zeros with ``valid`` false.

    Returns:
        Path, rows and bytes of what was written, and how many rows were left out.

    Raises:
        ConfigError: There is no such field, nothing is left, or the folder holds something else.

    Examples:
        >>> featstore.export("stores/photos", "arrays", format="npy", fields=["cls"]).rows
        10
        >>> numpy.load("arrays/fields/cls.npy").shape
        (10, 3, 4)
    """
    from featstore.derive.export import export

    source = address_of(store)
    with progress_bar(" rows", show=progress) as report:
        return export(
            source if is_url(source) else Path(source),
            Path(out),
            format,
            fields=fields,
            where=where,
            canonical=canonical,
            float32=float32,
            keep_invalid=keep_invalid,
            progress=report,
        )


def push(
    store: Address,
    url: Folder,
    *,
    fields: Sequence[str] = (),
    without: Sequence[str] = (),
    where: Sequence[str] = (),
    rows: slice | None = None,
    jobs: int = 8,
    read_back: bool = True,
    replace: bool = False,
    options: Mapping[str, str] | None = None,
    progress: bool = True,
) -> "TransferReport":
    """Upload a store, or a part of it. Unchanged files are skipped; the manifest goes last.

    Args:
        store: Folder of a complete store.
        url: Destination: a folder, or s3://, gs://, az://, sftp://, hf://datasets/.
        fields: Names of the fields to upload; all by default.
        without: Names of fields to leave out, e.g. ``pictures``.
        where: Shell patterns over sample ids; a row is taken if any of them matches.
        rows: A slice of row numbers.
        read_back: Read every uploaded file again and compare it; otherwise the transport is trusted.
        replace: Overwrite another store at the destination.
        options: Options of the client, e.g. ``{"endpoint": "https://minio.example.org"}``.

    Returns:
        Files and bytes that were uploaded and skipped.

    Raises:
        ManifestMismatch: Another store is at the destination.
        RemoteError: The destination does not answer, or refuses.

    Examples:
        >>> featstore.push("stores/photos", "share/photos").rows
        10
    """
    from featstore.sharing.part import Part
    from featstore.sharing.push import push

    part = Part(tuple(fields), tuple(where), slice(None) if rows is None else rows)
    part = part.without(without, folder_of(store))
    with progress_bar("B", show=progress, unit_scale=True) as report:
        return push(
            folder_of(store),
            address_of(url),
            part=part,
            jobs=jobs,
            read_back=read_back,
            replace=replace,
            options=options,
            progress=report,
        )


def pull(
    url: Folder,
    out: Folder,
    *,
    fields: Sequence[str] = (),
    where: Sequence[str] = (),
    rows: slice | None = None,
    jobs: int = 8,
    replace: bool = False,
    options: Mapping[str, str] | None = None,
    progress: bool = True,
) -> FeatureStore:
    """Download a store, or a part of it, and check every byte. Resumes, and repairs a damaged copy.

    Args:
        url: URL or folder that holds the store's manifest.json.
        out: Destination folder.
        fields: Names of the fields to download; all by default.
        where: Shell patterns over sample ids; a row is taken if any of them matches.
        rows: A slice of row numbers.
        replace: Overwrite another store in the destination folder; unchanged files are not downloaded again.
        options: Options of the client, e.g. ``{"skip_signature": "true"}``.

    Raises:
        StoreNotFound: There is no store at the URL.
        ManifestMismatch: Another store is in the destination folder.
        RemoteError: The URL cannot be read.

    Examples:
        >>> copy = featstore.pull("share/photos", "stores/copy", fields=["cls"], where=["dog/*"])
        >>> copy.num_rows, sorted(copy.manifest.fields)
        (5, ['cls'])
    """
    from featstore.sharing.part import Part
    from featstore.sharing.pull import pull

    part = Part(tuple(fields), tuple(where), slice(None) if rows is None else rows)
    with progress_bar("B", show=progress, unit_scale=True) as report:
        pull(
            address_of(url),
            Path(out),
            part=part,
            jobs=jobs,
            replace=replace,
            options=options,
            progress=report,
        )
    return FeatureStore.open(address_of(out))

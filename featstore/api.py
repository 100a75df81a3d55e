"""The public functions of ``featstore``: make, open, combine, check and share feature stores.

Use them as ``featstore.extract(...)``. Each takes plain arguments, writes a folder, and returns the opened store or a
report. A run that was stopped resumes when the same function is called again with the same arguments.
Command ``featstore`` does the same from a shell.

In all of them, ``store`` is a complete store (its folder, or the opened store), ``out`` the folder of the new one,
which is returned, and ``progress`` shows a progress bar. A store that is not there, of another version of the format,
not complete or damaged raises ``StoreNotFound``, ``ManifestMismatch``, ``StoreIncomplete`` or ``ShardCorrupt``; one
that another process writes ``StoreBusy``; a disk that is full or refuses ``StoreWriteError``.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from featstore.cli.progress_bar import progress_bar
from featstore.errors import ConfigError
from featstore.places.open_place import is_url
from featstore.reading.store import FeatureStore

if TYPE_CHECKING:
    import numpy.typing as npt

    from featstore.derive.export import Exported
    from featstore.maintenance.verify import VerifyReport
    from featstore.planning.estimate import Estimate
    from featstore.reading.cached.cache import CacheConfig
    from featstore.sharing.progress import TransferReport

Address: TypeAlias = str | os.PathLike[str] | FeatureStore
"""A store: its folder, its URL, or the opened store."""
Folder: TypeAlias = str | os.PathLike[str]
Settings: TypeAlias = Mapping[str, Any]
"""Settings of one section of a recipe by name."""
Container: TypeAlias = Literal["zarr", "webdataset"]
Codec: TypeAlias = Literal["raw", "zstd", "bitshuffle"]
Dtype: TypeAlias = Literal["float16", "bfloat16", "float32", "int8"]


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
    return FeatureStore.open(_text(path), allow_incomplete=allow_incomplete, cache=cache)


def extract(
    images: Folder | None = None,
    *,
    teacher: str | Settings | None = None,
    out: Folder | None = None,
    fields: Sequence[str] | None = None,
    dtype: Dtype | None = None,
    views: Settings | None = None,
    source: Settings | None = None,
    store: Settings | None = None,
    texts: Sequence[Settings] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    max_invalid_share: float | None = None,
    repair: bool = False,
    append: bool = False,
    recipe: Folder | None = None,
    progress: bool = True,
) -> FeatureStore:
    """Run a frozen teacher once over images and write its features into a store. Resumes a store that was begun.

    Arguments are the settings of a recipe; ``featstore extract --help`` describes all of them. Processes that
    ``accelerate launch`` or ``torchrun`` started share the work. Needs the extra ``featstore-distill[distill]``.

    Args:
        images: Folder of images, WebDataset tars (folder, glob or braces), a saved Hugging Face data set, or
            ``"digits"``. The kind is taken from what is there; ``source={"kind": ...}`` sets it.
        teacher: Model name (timm, with its tag after a dot), or the settings of section ``teacher``, e.g.
            ``{"library": "open_clip", "name": "ViT-B-32", "tag": "laion2b_s34b_b79k"}``.
        out: Folder of the store, or its URL in a bucket (s3://, gs://, az://).
        fields: What to store of each image: cls, mean, pooled, tokens, projected, logits, gridK or logits_topK.
            Default: cls.
        dtype: Type of the stored numbers. Default: float16.
        views: Settings of section ``views``, e.g. ``{"seeded": 4}`` for four random crops per image. Default: the
            canonical view.
        source: Further settings of section ``source``, e.g. ``{"include": ["train/*"]}``.
        store: Further settings of section ``store``, e.g. ``{"container": "webdataset"}``.
        texts: Text tables from the teacher's text side, e.g. ``[{"name": "en", "templates": ["a photo of a {}."]}]``.
        batch_size: Images per forward pass of one process. Default: 64.
        workers: Processes that decode images, per process with a teacher. Default: 2.
        max_invalid_share: Share of unusable images above which ``TooManyInvalid`` is raised. Default: 0.01.
        repair: Check every byte of the store first, and make damaged shards again.
        append: The store is finished and the source has more images: add the new ones.
        recipe: YAML file with settings that hold where no argument is given; ``"digits"`` is the one of the package.

    Raises:
        ConfigError: A setting is missing, unknown or out of range.
        SourceError: The images cannot be listed.
        TeacherError: The teacher cannot be built, or does not have a field.
        ManifestMismatch: The folder holds a store that was made with other settings.
        TooManyInvalid: The store is complete, but too many images were unusable.

    Examples:
        The notebook ``docs/two_phases.ipynb`` runs it on the digits::

            store = featstore.extract("photos/", teacher="vit_small_patch14_dinov2.lvd142m", out="stores/photos")
    """
    from featstore.cli.schema import build_config
    from featstore.extraction.config import DEFAULT_RECIPE, ExtractConfig
    from featstore.extraction.run import run
    from featstore.sources.config import source_of

    named = {"name": teacher} if isinstance(teacher, str) else dict(teacher or {})
    sections: dict[str, dict[str, Any]] = {
        "source": {**(source_of(_text(images)) if images is not None else {}), **(source or {})},
        "teacher": named,
        "views": dict(views or {}),
        "store": {
            **_given(path=out and _text(out), fields=fields and list(fields), dtype=dtype),
            **(store or {}),
        },
    }
    values: dict[str, Any] = {name: section for name, section in sections.items() if section}
    values |= _given(texts=texts and [*map(dict, texts)])
    values |= _given(batch_size=batch_size, workers=workers, max_invalid_share=max_invalid_share)
    values |= {"repair": repair, "append": append}
    if recipe is None and (images is None or out is None or teacher is None):
        raise ConfigError("featstore.extract: give images, teacher and out, or a recipe.")
    file = DEFAULT_RECIPE if recipe == "digits" else None if recipe is None else Path(recipe)
    config = build_config(ExtractConfig, values, recipe=file)
    run(config, progress=progress)
    return FeatureStore.open(config.store.path)


def from_arrays(
    out: Folder,
    fields: Mapping[str, Any],
    ids: Iterable[str],
    *,
    teacher: str | None,
    **options: Any,
) -> FeatureStore:
    """Make a store of whole arrays. For rows that come in batches, see ``featstore.create``.

    Args:
        fields: Arrays by name of the field, (N, *shape) each, numpy or torch, e.g. memory-mapped. Types stay, except
            that float64 is stored as float32.
        ids: (N,) sample ids. With images, use the paths below their folder, so that ``distill`` finds them.
        teacher: Name and version of the model that computed the arrays; None if no model did.
        options: Further arguments of ``featstore.create``: ``labels``, ``preprocessing``, ``content_sha256``, ...

    Raises:
        ConfigError: Arrays, ids or labels do not fit together.
        SourceError: Ids repeat or are empty.
        ManifestMismatch: The folder holds a store that was made with other arguments.

    Examples:
        >>> arrays = {"cls": numpy.ones((2, 4))}
        >>> store = featstore.from_arrays("stores/two", arrays, ["a.jpg", "b.jpg"], teacher="mine v3")
        >>> store.gather("cls", [0, 1]).shape
        (2, 1, 4)
    """
    from featstore.importing.create import from_arrays

    from_arrays(_text(out), fields, ids, teacher=teacher, **options)
    return FeatureStore.open(_text(out))


def import_(
    source: Folder,
    out: Folder,
    *,
    teacher: str,
    kind: Literal["npy", "parquet", "hf", "clip-retrieval"] | None = None,
    fields: Mapping[str, str] | None = None,
    ids: str | None = None,
    labels: str | None = None,
    dtype: str | None = None,
    images: Folder | None = None,
    progress: bool = True,
    **options: Any,
) -> FeatureStore:
    """Make a store of features that another program wrote. Resumes when it is called again.

    Args:
        source: npy file or folder, Parquet files, a saved Hugging Face data set, or a folder of clip-retrieval.
        teacher: Name and version of the model that computed the features.
        kind: Format of ``source``; by default taken from what is there.
        fields: Column or file by name of the field; by default all columns of floating point lists.
        ids: Column or file of the sample ids.
        labels: Column or file of the labels.
        dtype: Type of the stored numbers; by default as they are.
        images: Folder of the images; binds the rows to the images by the SHA-256 of their bytes.
        options: Further arguments of ``featstore.create``: ``preprocessing``, ``container``, ...

    Raises:
        SourceError: The source cannot be read, or ids repeat.
        MissingSamples: Images of some ids are missing.
        ConfigError, ManifestMismatch: As for ``featstore.create``.

    Examples:
        >>> numpy.save("cls.npy", numpy.ones((2, 4)))
        >>> numpy.save("ids.npy", ["a.jpg", "b.jpg"])
        >>> featstore.import_("cls.npy", "stores/mine", ids="ids.npy", teacher="mine v3").num_rows
        2
    """
    from featstore.importing.imports import import_

    with progress_bar(" rows", show=progress) as report:
        import_(
            _text(source),
            _text(out),
            teacher=teacher,
            kind=kind,
            fields=fields,
            ids=ids,
            labels=labels,
            dtype=dtype,
            images=None if images is None else _text(images),
            progress=report,
            **options,
        )
    return FeatureStore.open(_text(out))


def merge(
    stores: Sequence[Address],
    out: Folder,
    *,
    kind: Literal["rows", "teachers"] | None = None,
    duplicates: Literal["refuse", "skip", "keep"] = "refuse",
    missing: Literal["refuse", "drop", "invalid"] = "refuse",
    names: Sequence[str] = (),
    progress: bool = True,
) -> FeatureStore:
    """Write several stores as one: more rows, or more teachers for the same images.

    Args:
        stores: Two or more complete stores; the first one decides container, order and shard size.
        kind: ``"rows"`` appends the rows of one store to those of another; ``"teachers"`` puts fields side by side and
            matches images by content. Default: rows if the stores were made alike, else teachers.
        duplicates: For rows: what to do with images that an earlier store has under another id.
        missing: For teachers: what to do with images that are not in every store; ``"invalid"`` keeps them without
            features.
        names: One per store; prefix of the field names (teachers) or of the sample ids (rows).

    Raises:
        ConfigError, ManifestMismatch: The stores do not fit together.

    Examples:
        >>> merged = featstore.merge(["stores/photos", "stores/more"], "stores/all")
        >>> merged.num_rows
        20
    """
    from featstore.derive.merge import merge

    with progress_bar(" shards", show=progress) as report:
        merge(
            [_folder(store) for store in stores],
            Path(out),
            kind=kind,
            duplicates=duplicates,
            missing=missing,
            names=names,
            progress=report,
        )
    return FeatureStore.open(_text(out))


def subset(
    store: Address,
    out: Folder,
    *,
    fields: Sequence[str] | None = None,
    where: Sequence[str] = (),
    rows: "slice | npt.ArrayLike | None" = None,
    labelled_per_class: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> FeatureStore:
    """Write some rows or some fields of a store as a new store. Values, ids and labels stay as they are.

    Args:
        fields: Names of the fields to take; all by default.
        where: Shell patterns over sample ids; a row is taken if any of them matches. Conditions such as
            ``confidence > .6`` on fields of one number must all hold.
        rows: A slice of row numbers; or (n,) integers, in the order of the new store, without other conditions.
        labelled_per_class: Take so many valid, different images of each class; 0 takes all.
        seed: Seed of that choice.

    Raises:
        ConfigError: Nothing is left, or there is no such field.
        MissingSamples: A row number is outside the store.

    Examples:
        >>> dogs = featstore.subset("stores/photos", "stores/dogs", where=["dog/*"], fields=["cls"])
        >>> dogs.num_rows
        5
    """
    from featstore.derive.subset import choose_rows, subset

    folder = _folder(store)
    if rows is not None and not isinstance(rows, slice):
        if where or labelled_per_class:
            raise ConfigError(
                "rows: row numbers cannot be combined with where or labelled_per_class; give a slice, or choose the "
                "numbers by store.sample_ids."
            )
        chosen = rows
    else:
        chosen = choose_rows(
            FeatureStore.open(folder),
            where=where,
            rows=slice(None) if rows is None else rows,
            labelled_per_class=labelled_per_class,
            seed=seed,
        )
    with progress_bar(" shards", show=progress) as report:
        subset(folder, Path(out), rows=chosen, fields=fields, progress=report)
    return FeatureStore.open(_text(out))


def split(
    store: Address,
    outs: Mapping[Folder, float],
    *,
    seed: int = 0,
    by_class: bool = False,
    progress: bool = True,
) -> list[FeatureStore]:
    """Write a store as several, e.g. for training and test. Images of equal content stay together.

    Args:
        outs: Folder of each part and its share of the rows; shares add up to 1.
        seed: Seed of the choice.
        by_class: Meet the shares in each class as exactly as its number of images allows. Otherwise they are met
            nearly, but an image stays in its part when the store grows.

    Raises:
        ConfigError: Shares do not add up to 1, or a part would be empty.

    Examples:
        >>> parts = featstore.split("stores/photos", {"stores/train": 0.8, "stores/test": 0.2}, by_class=True)
        >>> [part.num_rows for part in parts]
        [8, 2]
    """
    from featstore.derive.split import split

    folders = {Path(out): share for out, share in outs.items()}
    with progress_bar(" shards", show=progress) as report:
        split(_folder(store), folders, seed=seed, by_class=by_class, progress=report)
    return [FeatureStore.open(folder) for folder in folders]


def append(
    store: Address,
    new: Address,
    *,
    duplicates: Literal["refuse", "skip", "keep"] = "refuse",
    progress: bool = True,
) -> FeatureStore:
    """Add the rows of a store to another one, which becomes its next version. Old rows keep number and bytes.

    Args:
        store: The complete store that grows. Opened copies of it keep reading the old version.
        new: A complete store of other images, made alike (same teachers, views and fields).
        duplicates: What to do with images that the store has under another id.

    Raises:
        ManifestMismatch: The stores were not made alike.
        ConfigError: Images repeat.
        StoreWriteError: The disk refused; the store is unchanged.

    Examples:
        >>> grown = featstore.append("stores/photos", "stores/more")
        >>> grown.num_rows, grown.manifest.version
        (20, 2)
    """
    from featstore.derive.append import append

    folder = _folder(store)
    with progress_bar(" shards", show=progress) as report:
        append(folder, _folder(new), duplicates=duplicates, progress=report)
    return FeatureStore.open(folder)


def convert(
    store: Address,
    out: Folder,
    *,
    container: Container | None = None,
    codec: Codec | None = None,
    shard_rows: int | None = None,
    progress: bool = True,
) -> FeatureStore:
    """Write the rows of a store in another container, with another codec, or in shards of another size.

    Args:
        out: Folder of the new store; its rows and its fingerprint are those of the old one.
        container: By default as before.
        codec: By default as before. Tars have no codec but ``"raw"``.
        shard_rows: Rows of a shard; by default as before.

    Raises:
        ConfigError: Nothing would change, or the container cannot hold a field.

    Examples:
        >>> tars = featstore.convert("stores/photos", "stores/tars", container="webdataset")
        >>> tars.fingerprint == featstore.open("stores/photos").fingerprint
        True
    """
    from featstore.derive.convert import convert

    with progress_bar(" shards", show=progress) as report:
        convert(
            _folder(store),
            Path(out),
            container=container,
            codec=codec,
            shard_rows=shard_rows,
            progress=report,
        )
    return FeatureStore.open(_text(out))


def requantise(
    store: Address,
    out: Folder,
    *,
    dtype: Dtype,
    allow_widening: bool = False,
    sample_rows: int = 2048,
    progress: bool = True,
) -> FeatureStore:
    """Write a store with its features in another type, without the teacher. The error is measured and recorded.

    Args:
        dtype: Type of the new store; ``"int8"`` takes half the bytes of float16.
        allow_widening: Also write more digits than there are.
        sample_rows: Valid rows on which scales and errors are measured.

    Returns:
        The new store; ``manifest.fields[name].encoding`` holds the measured error of int8.

    Raises:
        ConfigError: Nothing would change, or a value does not fit the type.

    Examples:
        >>> small = featstore.requantise("stores/photos", "stores/int8", dtype="int8")
        >>> small.manifest.fields["cls"].encoding.kind
        'int8'
    """
    from featstore.derive.requantise import requantise

    with progress_bar(" shards", show=progress) as report:
        requantise(
            _folder(store),
            Path(out),
            dtype,
            allow_widening=allow_widening,
            sample_rows=sample_rows,
            progress=report,
        )
    return FeatureStore.open(_text(out))


def fuse(
    store: Address,
    out: Folder,
    *,
    rule: Literal["knfu", "uniform"] = "knfu",
    beta: float = 10.0,
    fields: Sequence[str] = (),
    progress: bool = True,
) -> FeatureStore:
    """Fuse the class logits of several teams over one transfer set into one target per team (KnFu).

    Args:
        store: A complete store with a field of class logits per team (``featstore.merge``).
        out: Folder of the new store; field ``fused.NAME`` holds log-probabilities for the team of field NAME.
        rule: ``"knfu"`` weighs teams with a similar mean soft label more, ``"uniform"`` all the same.
        beta: How selective ``"knfu"`` is; 0 is uniform.
        fields: Fields of the teams; none takes all class logits.

    Returns:
        The new store; artefact ``fusion`` holds the weights, a row per team.

    Raises:
        ConfigError: Fewer than two teams, or other numbers or orders of classes.

    Examples:
        >>> contents = numpy.zeros((2, 32), "uint8")  # SHA-256 of each image
        >>> for team in ("north", "south"):
        ...     logits = 4 * numpy.eye(2, 3, dtype="float32")
        ...     store = featstore.from_arrays(
        ...         f"teams/{team}", {"logits": logits}, ["a", "b"], teacher=team, content_sha256=contents
        ...     )
        >>> names = ["north", "south"]
        >>> store = featstore.merge(
        ...     ["teams/north", "teams/south"], "teams/both", kind="teachers", names=names
        ... )
        >>> fused = featstore.fuse("teams/both", "teams/fused")
        >>> fused["fused.north_logits"].shape
        (2, 1, 3)
    """
    from featstore.derive.fuse import fuse

    with progress_bar(" shards", show=progress) as report:
        fuse(_folder(store), Path(out), rule=rule, beta=beta, fields=fields, progress=report)
    return FeatureStore.open(_text(out))


def text_table(
    store: Address,
    out: Folder,
    *,
    name: str = "classes",
    field: str = "",
    names: Sequence[str] = (),
    array: "npt.ArrayLike | None" = None,
    origin: str = "",
    templates: Sequence[str] = (),
    weights: Folder = "",
    rows: "npt.ArrayLike | None" = None,
    progress: bool = True,
) -> FeatureStore:
    """Write a store with one more text table: names, and where they lie in the teacher's space, for task zeroshot.

    Args:
        store: A complete store.
        out: Folder of the new store; where the disk has hard links, shards are not copied.
        name: Of the table, e.g. one for each set of classes and language; the artefact is ``texts.NAME``.
        field: Vector field in whose space the texts lie. Default: ``projected``, or the only vector.
        names: Default: the class names of the store.
        array: (names, width) embeddings. Without it and ``templates``, the mean of every class in the field is taken,
            a stand-in without language.
        origin: How the array was made, for the manifest.
        templates: Prompts with ``{}`` for the name; the text side of the store's open_clip teacher embeds them.
        weights: Local weights of that teacher.
        rows: Rows that class means average over. Default: all with a label.
        progress: Show a progress bar.

    Returns:
        The new store.

    Raises:
        ConfigError: Names and embeddings do not fit each other or the field.
        TeacherError: The teacher has no text side, or other weights made the store.

    Examples:
        >>> texts = featstore.text_table("stores/photos", "stores/texts", names=["cat", "dog"], array=numpy.eye(2, 4))
        >>> sorted(texts.manifest.artefacts)
        ['texts.classes']
    """
    import numpy as np

    from featstore.derive.text_table import add_text_table
    from featstore.extraction.text_tables import make_table

    opened = FeatureStore.open(_folder(store))
    table, used, how = make_table(
        opened,
        field=field,
        names=names,
        array=array,
        templates=templates,
        weights=os.fspath(weights),
        origin_of_array=origin,
        rows=None if rows is None else np.asarray(rows),
    )
    with progress_bar(" shards", show=progress) as report:
        add_text_table(
            opened.path, Path(out), table, name=name, field=used, origin=how, progress=report
        )
    return FeatureStore.open(_text(out))


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

    source = _text(store)
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

    text = _text(store)
    with progress_bar(" blocks" if sample else " shards", show=progress) as report:
        if is_url(text):
            return verify_url(text, sample=sample, seed=seed, progress=report)
        return verify(_folder(store), sample=sample, seed=seed, workers=workers, progress=report)


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

    return repair(_folder(store), workers=workers)


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
    part = part.without(without, _folder(store))
    with progress_bar("B", show=progress, unit_scale=True) as report:
        return push(
            _folder(store),
            _text(url),
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
            _text(url),
            Path(out),
            part=part,
            jobs=jobs,
            replace=replace,
            options=options,
            progress=report,
        )
    return FeatureStore.open(_text(out))


def plan(
    images: int,
    fields: Mapping[str, Sequence[int]],
    *,
    dtype: Dtype = "float16",
    views: int = 1,
    shard_rows: int = 4096,
    images_per_second: float | None = None,
    path: Folder | None = None,
) -> "Estimate":
    """Estimate bytes, files and hours of a store before it is made.

    Args:
        images: Number of images.
        fields: Name and shape of each field, e.g. ``{"cls": (1024,), "grid7": (7, 7, 1024)}``.
        dtype: Type of the stored numbers.
        views: Views per image.
        shard_rows: Most rows of a shard.
        images_per_second: Rate of the teacher, all processes together; gives the hours.
        path: Folder where the store would go; its disk is measured and its free space compared.

    Returns:
        The estimate; ``print`` shows it, with the sizes in other types and codecs.

    Raises:
        ConfigError: A number or a shape is out of range.

    Examples:
        >>> estimate = featstore.plan(1_281_167, {"cls": (1024,)})
        >>> estimate.bytes, estimate.shards
        (2623830016, 313)
    """
    from featstore.planning.estimate import Wanted, estimate

    wanted = [Wanted(name, tuple(shape), dtype) for name, shape in fields.items()]
    return estimate(
        images,
        wanted,
        views=views,
        shard_rows=shard_rows,
        images_per_second=images_per_second,
        path=None if path is None else Path(path),
    )


def _text(store: Address) -> str:
    return store.address if isinstance(store, FeatureStore) else os.fspath(store)


def _folder(store: Address) -> Path:
    text = _text(store)
    if is_url(text):
        raise ConfigError(f"{text}: pull the store first: featstore.pull({text!r}, FOLDER).")
    return Path(text)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

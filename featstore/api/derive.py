"""New stores from old ones."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featstore.api.arguments import (
    Address,
    Codec,
    Container,
    Dtype,
    Folder,
    address_of,
    folder_of,
    given,
)
from featstore.cli.progress_bar import progress_bar
from featstore.errors import ConfigError
from featstore.reading.store import FeatureStore

if TYPE_CHECKING:
    import numpy.typing as npt


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

    folders = [folder_of(store) for store in stores]
    write = partial(merge, folders, kind=kind, duplicates=duplicates, missing=missing, names=names)
    return _made(write, out, progress=progress)


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

    folder = folder_of(store)
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
    return _made(partial(subset, folder, rows=chosen, fields=fields), out, progress=progress)


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
        split(folder_of(store), folders, seed=seed, by_class=by_class, progress=report)
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

    folder = folder_of(store)
    with progress_bar(" shards", show=progress) as report:
        append(folder, folder_of(new), duplicates=duplicates, progress=report)
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

    settings = given(container=container, codec=codec, shard_rows=shard_rows)
    return _made(partial(convert, folder_of(store), **settings), out, progress=progress)


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

    write = partial(
        requantise,
        folder_of(store),
        dtype=dtype,
        allow_widening=allow_widening,
        sample_rows=sample_rows,
    )
    return _made(write, out, progress=progress)


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

    write = partial(fuse, folder_of(store), rule=rule, beta=beta, fields=fields)
    return _made(write, out, progress=progress)


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
    """Write a store with one more text table: names and their embeddings in the teacher's space, for task zeroshot.

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

    opened = FeatureStore.open(folder_of(store))
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
    return FeatureStore.open(address_of(out))


def _made(write: Callable[..., object], out: Folder, *, progress: bool) -> FeatureStore:
    """Run a function of ``featstore.derive``, all but its folder given, with a progress bar; open what it wrote."""
    with progress_bar(" shards", show=progress) as report:
        write(Path(out), progress=report)
    return FeatureStore.open(address_of(out))

"""Create a store from the caller's own arrays, row by row or whole; a stopped run is resumed by the same call.

Rows come in order. They are collected in memory until a shard is full; it is then written in a thread while the next
one is filled. A killed run loses the rows of the shards that were not written.
"""

# N rows of the store, n rows of a batch, V views

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featstore.containers import make_backend
from featstore.errors import ConfigError, FeatstoreError, StoreIncomplete, shorten
from featstore.files.array_types import Array, Bytes, Mask, Rows
from featstore.files.atomic import Disk
from featstore.files.locks import exclusive
from featstore.format.fields import empty_columns, put, put_ragged
from featstore.format.ids import check_sample_ids, ids_sha256
from featstore.format.ledger import pending_shards
from featstore.format.manifest import Manifest, new_manifest
from featstore.format.manifest_records import (
    Codec,
    Container,
    FieldRecord,
    PreprocessingRecord,
    RaggedEncoding,
    SourceRecord,
    TeacherRecord,
    TopKEncoding,
    WorkRecord,
)
from featstore.format.version import __version__
from featstore.format.views import View, ViewSet
from featstore.importing.given_values import (
    NO_WEIGHTS,
    TEACHER,
    ContentHash,
    Field,
    as_numpy,
    cast_to,
    content_hashes,
    field_of,
    field_record,
    is_finite,
    label_numbers,
    teacher_record,
)
from featstore.places.open_place import is_url
from featstore.planning.costs import shard_rows as fitting_rows
from featstore.writing.commit import ShardWriter, commit, finish, open_or_create, remove_leftovers
from featstore.writing.shard import Shard

SHARD_ROWS = 4096
SHARD_MB = 64  # rows of a shard, and megabytes of its widest column, at most


def create(
    path: str | Path,
    *,
    fields: Mapping[str, Field],
    ids: Iterable[str],
    teacher: str | TeacherRecord | None,
    labels: Sequence[Any] | npt.ArrayLike | None = None,
    class_names: Sequence[str] = (),
    content_sha256: npt.ArrayLike | Sequence[str] | ContentHash | None = None,
    preprocessing: PreprocessingRecord | Mapping[str, Any] | int | None = None,
    weights_sha256: str = NO_WEIGHTS,
    views: Sequence[View] = (View(kind="canonical"),),
    non_finite: Literal["refuse", "invalid"] = "refuse",
    container: Container = "zarr",
    codec: Codec = "raw",
    shard_rows: int | None = None,
    source: tuple[str, str] = ("arrays", ""),
) -> "NewStore":
    """Create a store of features that were computed elsewhere, or resume one that was begun.

    Examples:
        >>> ids = ["a.jpg", "b.jpg", "c.jpg"]
        >>> fields = {"cls": (4, "float16")}
        >>> with featstore.create("stores/mine", fields=fields, ids=ids, teacher="mine v3") as out:
        ...     for start in range(out.rows_done, len(ids), 2):
        ...         out.add(cls=numpy.ones((len(ids[start : start + 2]), 4)), start=start)
        >>> featstore.open("stores/mine").gather("cls", [0, 2]).shape
        (2, 1, 4)

    Args:
        path: Folder of the store.
        fields: By name, the shape of one row and its dtype, ``(768, "float16")`` or ``((7, 7, 768), "float32")``; dtype
            ``"text"`` for captions; or a ``FieldRecord``, e.g. for top-k logits and ragged rows.
        ids: Sample ids in row order, unique. With images, use the paths below the folder of the images, so that phase
            two finds them.
        teacher: Name of the model that computed the features, with its version: rows of models of one name count as
            alike. Or its ``TeacherRecord``; None if no model made the fields.
        labels: (N,) class numbers, class names, or None where a sample has none (-1 likewise).
        class_names: Names of the classes by number; taken from the labels if these are names.
        content_sha256: SHA-256 of each image file: (N, 32) uint8, N hexadecimal texts, or a function of the sample id.
            Without it, rows are matched with images by id alone, and changed images cannot be detected.
        preprocessing: Which region of an image the model saw: the side of its square input in pixels (the whole image,
            shorter side resized, centre cropped), or a mapping with ``size``, ``crop_pct``, ``crop_mode``,
            ``interpolation``, ``mean``, ``std``, or the record. Phase two needs it to show the student the same region.
        weights_sha256: Hash of the model's weights, if known.
        views: What the axis of views means; one canonical view by default.
        non_finite: Rows with NaN or infinity: refuse them, or store them as invalid.
        container: Container format.
        codec: Codec of all fields of numbers that are given as shape and dtype.
        shard_rows: Rows of a shard; by default up to 4,096, so that the widest column has at most 64 MB.
        source: Kind and address of where the rows come from, for the manifest.

    Returns:
        A context manager; call ``add`` on it.

    Raises:
        SourceError: Ids repeat or are empty.
        ConfigError: A field, label or hash does not fit.
        ManifestMismatch: The folder holds a store that was created with other arguments.
        StoreNotFound: The folder holds something that is not a store.
    """
    if is_url(str(path)):
        raise ConfigError(
            f"{path}: a store is created in a folder. Push it afterwards: featstore push."
        )
    names = [str(sample_id) for sample_id in ids]
    check_sample_ids(names, where=str(path))
    numbers, classes = label_numbers(labels, class_names, names)
    record = teacher_record(teacher, weights_sha256, preprocessing)
    made = {
        name: field_record(name, given, TEACHER if record else "", codec)
        for name, given in fields.items()
    }
    if not made:
        raise ConfigError(f"{path}: no fields. Give at least one, such as cls=(768, 'float16').")
    try:
        rows = SourceRecord(
            kind=source[0],
            uri=source[1],
            num_samples=len(names),
            ids_sha256=ids_sha256(names),
            has_labels=numbers is not None,
            class_names=classes,
        )
        manifest = _new_manifest(
            record, ViewSet(views=tuple(views)), made, rows, container, shard_rows
        )
    except (ValueError, FeatstoreError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return NewStore(
        Path(path),
        manifest,
        names,
        labels=numbers,
        hashes=content_hashes(content_sha256, len(names)),
        non_finite=non_finite,
    )


def _new_manifest(
    teacher: TeacherRecord | None,
    views: ViewSet,
    fields: dict[str, FieldRecord],
    source: SourceRecord,
    container: Container,
    shard_rows: int | None,
) -> Manifest:
    rows = shard_rows or min(
        SHARD_ROWS,
        fitting_rows(fields, num_views=len(views), most_rows=SHARD_ROWS, most_mb=SHARD_MB),
    )
    return new_manifest(
        teachers={TEACHER: teacher} if teacher else {},
        views=views,
        fields=fields,
        source=source,
        work=WorkRecord(shard_rows=rows, batch_size=rows),
        created_by={"featstore": __version__, "numpy": np.__version__},
        container=container,
    )


class NewStore:
    """A store that is being created. Use it as a context manager; leaving it checks that all rows are there.

    Attributes:
        path: Folder of the store.
        manifest: Its manifest.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        ids: list[str],
        *,
        labels: Rows | None,
        hashes: Bytes | ContentHash | None,
        non_finite: Literal["refuse", "invalid"],
    ) -> None:
        self.path, self.manifest = path, manifest
        self._ids, self._labels, self._hashes = ids, labels, hashes
        self._non_finite = non_finite
        self._next = 0
        self._shard = -1
        self._columns: dict[str, Array] = {}
        self._ragged: dict[str, list[Any]] = {}
        self._reasons: list[str | None] = []
        self._pending = set(range(manifest.num_shards))
        self._stack = ExitStack()

    def __enter__(self) -> "NewStore":
        self.manifest = open_or_create(self.path, self.manifest)
        with ExitStack() as stack:
            stack.enter_context(exclusive(self.path))
            remove_leftovers(self.path)
            self._pending = set(pending_shards(self.path, self.manifest.num_shards))
            backend = make_backend(self.path, self.manifest)
            write = partial(commit, backend, disk=stack.enter_context(Disk(self.path)))
            self._writer = stack.enter_context(ShardWriter(write, lambda shard, ours: None))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._columns = {}
        self._stack.__exit__(kind, error, trace)
        if error is not None:
            return
        missing = pending_shards(self.path, self.manifest.num_shards)
        if missing:
            raise StoreIncomplete(
                f"{self.path}: {self._next:,} of {self.num_rows:,} rows were added. Create it again with the same "
                f"arguments and add the rows from {self.manifest.shard_range(missing[0]).start:,} on (rows_done)."
            )
        finish(self.path, self.manifest.num_shards)

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    @property
    def rows_done(self) -> int:
        """Number of leading rows that an earlier run has written; ``add`` may begin behind them."""
        first = min(self._pending, default=self.manifest.num_shards)
        return self.num_rows if first == self.manifest.num_shards else self._range(first).start

    def _range(self, shard: int) -> range:
        return self.manifest.shard_range(shard)

    def add(
        self, values: Mapping[str, Any] | None = None, /, *, start: int | None = None, **more: Any
    ) -> None:
        """Add the next rows, of all fields. Rows that an earlier run has written already are skipped.

        Args:
            values: Arrays by field, for names that are no Python words.
            start: Number of the first of these rows; by default the one after the rows that were added last. Only rows
                that are written already (``rows_done``) can be left out.
            more: Arrays by field: (n, *shape), or (n, V, *shape); numpy arrays, PyTorch tensors, or what
                ``numpy.asarray`` takes. A top-k field takes the values of all classes; a ragged one a list of n arrays
                (of n lists of V arrays).

        Raises:
            ConfigError: Fields, shapes or counts do not fit, a value is NaN or infinite, or has no place in the dtype.
            StoreWriteError: The disk refused.
        """
        given = {**(values or {}), **more}
        fields = self.manifest.fields
        if given.keys() != fields.keys():
            raise ConfigError(
                f"{self.path}: fields {sorted(given)} were added, the store has {sorted(fields)}."
            )
        begin = self._next if start is None else start
        if begin != self._next and not (self._next < begin <= self.rows_done):
            raise ConfigError(
                f"{self.path}: rows from {begin:,} on were added; expected row {self._next:,}"
                + (f", or up to {self.rows_done:,}." if self.rows_done > self._next else ".")
            )
        arrays = {name: self._array(name, fields[name], value) for name, value in given.items()}
        counts = {name: len(value) for name, value in arrays.items()}
        count = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            raise ConfigError(f"{self.path}: fields have different numbers of rows: {counts}.")
        if begin + count > self.num_rows:
            raise ConfigError(
                f"{self.path}: {begin + count:,} rows were added; {self.num_rows:,} ids were given."
            )
        bad = self._non_finite_rows(arrays, begin, count)
        self._next = begin
        while self._next < begin + count:
            self._add_to_shard(arrays, bad, begin, begin + count)

    def _array(self, name: str, record: FieldRecord, value: Any) -> Any:
        """Values of a field as they are put into its columns: (n, V, *shape), or a list of rows."""
        where = f'{self.path}: field "{name}"'
        if isinstance(record.encoding, RaggedEncoding):
            return [
                [as_numpy(view) for view in (row if isinstance(row, list | tuple) else [row])]
                for row in value
            ]
        array = as_numpy(value)
        views = (len(self.manifest.views),) if record.per_view else ()
        shape = record.shape
        if isinstance(record.encoding, TopKEncoding):
            shape = (*shape[:-1], record.encoding.num_classes)
        if views == (1,) and array.shape[1:] == shape:
            array = array[:, None]
        if array.ndim < 1 or array.shape[1:] != (*views, *shape):
            raise ConfigError(
                f"{where}: rows of shape {array.shape[1:]}, expected {(*views, *shape)}"
                + (f" or {shape}." if views == (1,) else ".")
            )
        if record.dtype == "text":
            if any(not isinstance(text, str) for text in array.reshape(-1).tolist()):
                raise ConfigError(f"{where}: expected text.")
            return array.astype(object)
        return cast_to(array, record.dtype, where)

    def _non_finite_rows(self, arrays: Mapping[str, Any], begin: int, count: int) -> Mask:
        bad = np.zeros(count, dtype=np.bool_)
        names = []
        for name, value in arrays.items():
            if isinstance(value, list):
                found = np.array([not all(map(is_finite, views)) for views in value], np.bool_)
            elif value.dtype == object or value.dtype.kind in "biu":
                continue
            else:
                found = ~np.isfinite(value.reshape(count, -1)).all(axis=1)
            if np.any(found):
                names.append(name)
                bad |= found
        if names and self._non_finite == "refuse":
            ids = [self._ids[begin + i] for i in np.flatnonzero(bad)]
            raise ConfigError(
                f"{self.path}: field {', '.join(names)}: {len(ids)} rows are not finite (NaN or infinity, or too large "
                f'for the dtype): {shorten(ids)}. Correct them, or store them as invalid with non_finite="invalid".'
            )
        return bad

    def _add_to_shard(self, arrays: Mapping[str, Any], bad: Mask, begin: int, end: int) -> None:
        """Add rows from the next one on, to the end of its shard at most."""
        shard = int(self.manifest.shards_of(np.array([self._next]))[0])
        span = self._range(shard)
        stop = min(span.stop, end)
        if shard not in self._pending:
            self._next = stop
            return
        if shard != self._shard:
            self._begin_shard(shard)
        part = slice(self._next - begin, stop - begin)
        at = slice(self._next - span.start, stop - span.start)
        refused = np.flatnonzero(bad[part])
        for row in refused + at.start:
            self._reasons[row] = "not finite"
        for name, record in self.manifest.fields.items():
            values = arrays[name][part]
            if isinstance(record.encoding, RaggedEncoding):
                self._ragged[name] += [
                    [view[:0] for view in views] if bad[part][row] else views
                    for row, views in enumerate(values)
                ]
                continue
            if len(refused) and record.dtype != "text":
                values = values.copy()
                values[refused] = 0
            put(self.manifest, self._columns, name, at, values)
        self._next = stop
        if stop == span.stop:
            self._end_shard()

    def _begin_shard(self, shard: int) -> None:
        self._shard = shard
        span = self._range(shard)
        self._columns = empty_columns(self.manifest, shard)
        self._reasons = [None] * len(span)
        self._ragged = {
            name: []
            for name, record in self.manifest.fields.items()
            if isinstance(record.encoding, RaggedEncoding)
        }
        ids = self._ids[span.start : span.stop]
        self._columns["sample_id"][:] = ids
        if self._labels is not None:
            self._columns["label"][:] = self._labels[span.start : span.stop]
        if callable(self._hashes):
            digests = b"".join(map(self._hashes, ids))
            self._columns["content_sha256"][:] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        elif self._hashes is not None:
            self._columns["content_sha256"][:] = self._hashes[span.start : span.stop]

    def _end_shard(self) -> None:
        for name, rows in self._ragged.items():
            per_view = self.manifest.fields[name].per_view
            parts = rows if per_view else [views[0] for views in rows]
            put_ragged(self.manifest, self._columns, name, self._shard, parts)
        self._columns["valid"][:] = [reason is None for reason in self._reasons]
        columns, self._columns = self._columns, {}
        self._writer.submit(Shard(self._shard, columns, self._reasons, {}))
        del columns
        self._pending.discard(self._shard)
        self._shard = -1


def from_arrays(
    path: str | Path, fields: Mapping[str, Any], ids: Iterable[str], **options: Any
) -> Manifest:
    """Create a store of whole arrays, as ``featstore.from_arrays``; returns its manifest."""
    several = len(options.get("views", ())) > 1
    specs: dict[str, Field] = {
        name: field_of(value[:1, 0] if several else value[:1]) for name, value in fields.items()
    }
    with create(path, fields=specs, ids=ids, **options) as out:
        counts = {name: len(value) for name, value in fields.items()}
        if set(counts.values()) != {out.num_rows}:
            raise ConfigError(f"{path}: {out.num_rows:,} ids for rows {counts}.")
        step = out.manifest.work.shard_rows
        for start in range(out.rows_done, out.num_rows, step):
            part = {name: value[start : start + step] for name, value in fields.items()}
            out.add(part, start=start)
    return out.manifest

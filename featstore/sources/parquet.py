"""Images in Parquet files, on a disk or behind a URL, as data sets of the Hugging Face hub have them.

Files are read by row group with pyarrow, not with ``datasets``: its stream has no rows by position, and without
streaming it copies the whole data set first.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.display.text import format_bytes
from featstore.errors import FeatstoreError, SourceError, shorten
from featstore.sources.base import NO_LABEL
from featstore.sources.hf import INSTALL, class_numbers, encode_array, named_labels
from featstore.sources.labels import check_labels
from featstore.sources.listed_files import ListedFiles
from featstore.sources.listing import FileListing, Ids
from featstore.sources.row_groups import RowGroupCache
from featstore.sources.source_files import SourceFile

MOST_GROUP_BYTES = 2 * 2**30
"""The images of one row group are in memory at a time."""


class ParquetSource(ListedFiles):
    """Rows of Parquet files, by names of files. An id is ``<file>/<row>``, ``data/train-00000/00000012``.

    ``<file>`` is the path below the folder that ``path`` names, without ``.parquet``.

    Args:
        path: a folder (its subfolders too), a file, or a pattern of files; also as a URL.
        image_column: images as the hub has them (bytes and path), file bytes, or arrays of uint8 or uint16.
        label_column: classes as ``ClassLabel``, integers or text; it may be missing.
        cache_gb: limit of the images on the local disk, see ``RowGroupCache``.

    Raises:
        SourceError: pyarrow is not installed, no such files, or columns do not fit.
    """

    def __init__(self, path: str, *, image_column: str, label_column: str, cache_gb: float) -> None:
        self.kind = "hf"
        self._pq = _import_parquet()
        self._image_column, self._label_column = image_column, label_column
        self._cache = RowGroupCache(int(cache_gb * 1e9))
        files = self._list_files(
            path, suffix=".parquet", key=("parquet", image_column, label_column)
        )
        if not self.sample_ids:
            raise SourceError(f"{path}: the Parquet files have no rows.")
        self.labels, self.class_names = _joined_labels(files, path, self.notes)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pq": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pq = _import_parquet()

    def read(self, row: int) -> bytes:
        """Return the bytes of one image; safe to call from several threads.

        Raises:
            OSError: the row has no image, or its row group is damaged.
            SourceError: the file was replaced since it was listed, or its server refuses.
        """
        number = self._file_of(row)
        group, at = (int(value) for value in self._spans[row])
        where = f"{self._place.url}/" if self._place is not None else ""
        key = f"{where}{self._files[number]} {self._stamps[number]} {self._image_column} {group}"
        data = self._cache.image(key, at, lambda: self._unpack(number, group))
        if not data:
            raise OSError(f"{self.uri}: {self.sample_ids[row]} has no image")
        return data

    def _unpack(self, number: int, group: int) -> list[bytes]:
        """Read the images of a row group, b"" where there is none."""
        file = self._open(self._files[number])
        self._check_same(file, number)
        try:
            with file:
                table = self._pq.ParquetFile(file).read_row_group(group, [self._image_column])
        except (OSError, MemoryError, FeatstoreError):
            raise
        except Exception as error:  # pyarrow's own errors have no common base
            raise OSError(f"{file.name}: {type(error).__name__}: {error}") from error
        return _images(table.column(0))

    def _list(self, name: str, file: SourceFile) -> FileListing:
        try:
            with file:
                parquet = self._pq.ParquetFile(file)
                return self._listing(name, file, parquet)
        except FeatstoreError:
            raise
        except Exception as error:  # pyarrow's own errors have no common base
            raise SourceError(
                f"{file.name}: cannot be read as Parquet ({type(error).__name__}: {error}). Fetch it again or leave it "
                "out of --source.path."
            ) from error

    def _listing(self, name: str, file: SourceFile, parquet: Any) -> FileListing:
        self._check_column(file.name, parquet)
        groups = [parquet.metadata.row_group(at) for at in range(parquet.num_row_groups)]
        for at, group in enumerate(groups):
            size = self._image_bytes(group)
            if size > MOST_GROUP_BYTES:
                raise SourceError(
                    f"{file.name}: row group {at} holds {format_bytes(size)} of images; at most "
                    f"{format_bytes(MOST_GROUP_BYTES)} are read at a time. Write the file again with smaller row "
                    "groups (row_group_size of pyarrow.parquet.write_table)."
                )
        rows = [np.arange(group.num_rows) for group in groups]
        spans = [np.stack([np.full(len(row), at), row], axis=1) for at, row in enumerate(rows)]
        total = sum(map(len, rows))
        labels, names = self._labels(file.name, parquet, total)
        notes: list[str] = []
        if names:
            where = f"{file.name}: column {self._label_column!r}"
            labels = named_labels(labels, names, where=where, notes=notes)
        return FileListing(
            name,
            file.stamp,
            Ids.of([f"{name}/{row:08d}" for row in range(total)]),
            np.concatenate(spans).astype(np.int64) if spans else np.empty((0, 2), np.int64),
            labels,
            notes,
            names,
        )

    def _image_bytes(self, group: Any) -> int:
        columns = [group.column(at) for at in range(group.num_columns)]
        return sum(
            column.total_uncompressed_size
            for column in columns
            if column.path_in_schema.split(".")[0] == self._image_column
        )

    def _check_column(self, where: str, parquet: Any) -> None:
        schema, column = parquet.schema_arrow, self._image_column
        if column not in schema.names:
            raise SourceError(
                f"{where} has no column {column!r}; its columns are {shorten(schema.names, 20)}. Name one with "
                "--source.image_column."
            )
        kind = schema.field(column).type
        if not _is_image(kind):
            raise SourceError(
                f"{where}: column {column!r} is of type {kind}; expected images (bytes and path), file bytes, or "
                "arrays of uint8 or uint16. Name another one with --source.image_column; for other arrays load the "
                "data set and save it with save_to_disk."
            )

    def _labels(
        self, where: str, parquet: Any, rows: int
    ) -> tuple[npt.NDArray[np.int64], list[str]]:
        """(n,) classes of a file, and their names if it has any."""
        import pyarrow.types as kinds

        schema, column = parquet.schema_arrow, self._label_column
        if column not in schema.names:
            return np.full(rows, NO_LABEL, np.int64), []
        values = parquet.read(columns=[column]).column(0)
        kind = values.type
        if kinds.is_dictionary(kind):
            values, kind = values.cast(kind.value_type), kind.value_type
        if kinds.is_string(kind) or kinds.is_large_string(kind):
            names = sorted({str(value) for value in values.to_pylist() if value is not None})
            return class_numbers(values, names), names
        if not kinds.is_integer(kind):
            raise SourceError(
                f"{where}: column {column!r} is of type {kind}; expected classes (integers or text). Name another "
                "column with --source.label_column, or one that does not exist for no labels."
            )
        return class_numbers(values, None), list(class_names(schema, column))


def class_names(schema: Any, column: str | None) -> tuple[str, ...]:
    """Names of a ClassLabel of the datasets library, which also Parquet files carry."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(features[column].get("names", ()))
    except (TypeError, KeyError, ValueError):
        return ()


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SourceError(
            f"Parquet files: the package 'pyarrow' cannot be imported ({error}). Install it: {INSTALL}"
        ) from None
    return pyarrow.parquet


def _is_image(kind: Any) -> bool:
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    depth, kind = 0, getattr(kind, "storage_type", kind)
    while kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    if depth:
        return bool(kinds.is_uint8(kind) or kinds.is_uint16(kind))
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))


def _images(column: Any) -> list[bytes]:
    """File bytes of a column of images; b"" for a row without one."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    if kinds.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    if kinds.is_binary(column.type) or kinds.is_large_binary(column.type):
        return [value or b"" for value in column.to_pylist()]
    deep = "uint16" in str(column.type)
    return [_picture(value, deep) for value in column.to_pylist()]


def _picture(value: Sequence[Any] | None, deep: bool) -> bytes:
    try:
        return encode_array(np.asarray(value or [], "u2" if deep else "u1"), deep=deep)
    except (OSError, ValueError):  # ragged, or of another number of channels
        return b""


def _joined_labels(
    files: Sequence[FileListing], where: str, notes: list[str]
) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...]]:
    """Classes over all files. Where the names of files differ, classes are numbered by their sorted names."""
    known = [file for file in files if (file.labels != NO_LABEL).any()]
    lists = {tuple(file.class_names) for file in known}
    if () in lists and len(lists) > 1:
        raise SourceError(
            f"{where}: some files have names of classes, others numbers alone: "
            f"{shorten([file.name for file in known if not file.class_names])}. Write them alike, or give labels with "
            "--source.labels."
        )
    labels = [file.labels for file in files]
    names = sorted(set().union(*lists)) if len(lists) > 1 else list(next(iter(lists), ()))
    if len(lists) > 1:
        index = {name: number for number, name in enumerate(names)}
        tables = [np.array([*map(index.get, file.class_names), NO_LABEL]) for file in files]
        labels = [table[numbers] for table, numbers in zip(tables, labels, strict=True)]
    joined = np.concatenate(labels)
    if not names:
        return check_labels(joined, where=where, notes=notes)
    return joined, tuple(names)

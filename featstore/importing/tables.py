"""Readers of features that other programs wrote: npy files, Parquet, Hugging Face data sets, clip-retrieval's folders.

Each knows sample ids, labels and the shape of its fields, and yields batches of rows from any row on.
"""

# n rows of a batch

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featstore.errors import ConfigError, SourceError, shorten
from featstore.files.array_types import Array
from featstore.files.numpy_files import read_npy
from featstore.importing.given_values import field_of
from featstore.sources.parquet import class_names

Kind = Literal["npy", "parquet", "hf", "clip-retrieval"]

ID_COLUMNS = ("sample_id", "id", "key", "image_path", "file_name", "filename", "path", "url")
"""Columns that are taken as sample ids if none is named, the first one that exists."""

LABEL_COLUMN = "label"  # column of labels that is taken if none is named

INSTALL = 'pip install "featstore-distill[hf]"'


class FeatureTable(ABC):
    """Rows of features in files of another program."""

    kind: Kind
    ids: Sequence[str]  # (N,) sample ids
    # (N,) class numbers or names, None where unknown; None if there are none at all
    labels: Sequence[Any] | None = None
    class_names: tuple[str, ...] = ()  # names of the classes by number, if the format knows them
    fields: Mapping[str, tuple[tuple[int, ...], str]]  # by name, shape of one row and dtype

    @abstractmethod
    def batches(self, start: int, step: int) -> Iterator[dict[str, Array]]:
        """Yield rows in order, from a row on, in batches of at most ``step`` rows."""


class NpyTable(FeatureTable):
    """Fields as npy files, memory-mapped; of several files of one field the rows follow each other.

    Raises:
        SourceError: A file is not npy, or its rows differ from those of the files before it.
        ConfigError: The fields and ids have different numbers of rows.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[Path]],
        ids: Sequence[str],
        labels: Sequence[Any] | None = None,
        kind: Kind = "npy",
    ) -> None:
        self.kind, self.ids, self.labels = kind, ids, labels
        self._parts = {name: [_map(path) for path in paths] for name, paths in files.items()}
        self.fields = {name: field_of(parts[0][:1]) for name, parts in self._parts.items()}
        for name, parts in self._parts.items():
            for path, part in zip(files[name], parts, strict=True):
                if part.shape[1:] != parts[0].shape[1:]:
                    raise SourceError(
                        f"{path}: rows of shape {part.shape[1:]}, expected {parts[0].shape[1:]} as in {files[name][0]}."
                    )
            rows = sum(map(len, parts))
            if rows != len(ids):
                raise ConfigError(
                    f'field "{name}": {rows:,} rows in {shorten([str(path) for path in files[name]], 3)}, '
                    f"but {len(ids):,} ids."
                )

    def batches(self, start: int, step: int) -> Iterator[dict[str, Array]]:
        for row in range(start, len(self.ids), step):
            yield {name: _rows(parts, row, row + step) for name, parts in self._parts.items()}


def _map(path: Path) -> Array:
    try:
        values = read_npy(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as npy ({error}).") from None
    if values.ndim < 1 or not len(values):
        raise SourceError(f"{path}: no rows; its shape is {values.shape}.")
    return values


def _rows(parts: Sequence[Array], start: int, stop: int) -> Array:
    found = []
    for part in parts:
        if start < len(part) and stop > 0:
            found.append(part[max(0, start) : stop])
        start, stop = start - len(part), stop - len(part)
    return found[0] if len(found) == 1 else np.concatenate(found)


class ArrowTable(FeatureTable):
    """Columns of Arrow tables: Parquet files, or a saved data set of the Hugging Face library.

    Args:
        read: Yields record batches of some columns, from a row on, of at most so many rows.
        fields: Columns by field; all columns of floating point lists if not given.
        id_column: Column of ids; found by name if not given.
        label_column: Column of labels; ``label`` if not given and there is one.
        default_ids: Ids where there is no column of ids; None: refuse.

    Raises:
        SourceError: A column is missing or of another type, or holds nulls or lists of different lengths.
    """

    def __init__(
        self,
        kind: Kind,
        where: str,
        schema: Any,
        read: Callable[[Sequence[str], int, int], Iterator[Any]],
        *,
        fields: Mapping[str, str] | None,
        id_column: str | None,
        label_column: str | None,
        default_ids: Sequence[str] | None = None,
    ) -> None:
        self.kind, self._where, self._read = kind, where, read
        names = list(schema.names)
        self._columns = dict(fields) if fields else {name: name for name in _vectors(schema)}
        if not self._columns:
            types = [f"{name} ({schema.field(name).type})" for name in names]
            raise SourceError(
                f"{where}: no column of floating point lists; its columns are {shorten(types, 20)}. Name one with "
                "--field NAME=COLUMN."
            )
        if id_column is None:
            id_column = next((name for name in ID_COLUMNS if name in names), None)
        if label_column is None and LABEL_COLUMN in names:
            label_column = LABEL_COLUMN
        if id_column is None and default_ids is None:
            raise SourceError(
                f"{where}: no column of sample ids; its columns are {shorten(names, 20)}. Name one with --ids COLUMN."
            )
        for name in (*self._columns.values(), id_column, label_column):
            if name is not None and name not in names:
                raise SourceError(
                    f"{where}: no column {name!r}; its columns are {shorten(names, 20)}."
                )
        small = [name for name in (id_column, label_column) if name is not None]
        values: dict[str, list[Any]] = {name: [] for name in small}
        if small:
            for batch in read(small, 0, 2**16):
                for name in small:
                    values[name] += batch.column(name).to_pylist()
        self.ids = (
            [str(value) for value in values[id_column]] if id_column else list(default_ids or ())
        )
        self.labels = values[label_column] if label_column else None
        self.class_names = class_names(schema, label_column)
        first = next(self.batches(0, 1), None)
        if first is None:
            raise SourceError(f"{where}: no rows.")
        self.fields = {name: field_of(value) for name, value in first.items()}

    def batches(self, start: int, step: int) -> Iterator[dict[str, Array]]:
        wanted = list(dict.fromkeys(self._columns.values()))
        for batch in self._read(wanted, start, step):
            yield {
                name: _dense(batch.column(column), f"{self._where}: column {column!r}")
                for name, column in self._columns.items()
            }


def _vectors(schema: Any) -> list[str]:
    """Columns of lists of floating point numbers, however deep."""
    import pyarrow.types as kinds

    found = []
    for field in schema:
        kind = getattr(field.type, "storage_type", field.type)
        depth = 0
        while kinds.is_list(kind) or kinds.is_fixed_size_list(kind) or kinds.is_large_list(kind):
            kind, depth = kind.value_type, depth + 1
        if depth and kinds.is_floating(kind):
            found.append(field.name)
    return found


def _dense(column: Any, where: str) -> Array:
    """Lists of one size, one in the other, as an array."""
    import pyarrow as pa
    import pyarrow.types as kinds

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    shape = [len(column)]
    while True:
        if column.null_count:
            raise SourceError(f"{where}: {column.null_count} values are null.")
        kind = column.type
        if kinds.is_fixed_size_list(kind):
            size = kind.list_size
        elif kinds.is_list(kind) or kinds.is_large_list(kind):
            sizes = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
            if len(sizes) > 1:
                raise SourceError(
                    f"{where}: lists of {sizes[0]} to {sizes[-1]} items; expected one length."
                )
            size = int(sizes[0]) if len(sizes) else 0
        else:
            break
        column = column.flatten()  # of a slice, its own items alone
        shape.append(size)
    if kinds.is_string(kind) or kinds.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=object).reshape(shape)
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)


def open_table(
    source: str | Path,
    *,
    kind: Kind | None = None,
    fields: Mapping[str, str] | None = None,
    ids: str | None = None,
    labels: str | None = None,
) -> FeatureTable:
    """Open features that another program wrote.

    Args:
        source: npy file, Parquet file or folder of them, folder of ``save_to_disk``, or folder of clip-retrieval.
        kind: Format; found by what is there if not given.
        fields: By name of the field: the column; for npy, a file (then ``source`` is the folder of these files).
        ids: Column of ids; for npy, a file with one id per line (or an npy of text).
        labels: Column of labels; for npy, a file with one label per line, or an npy of numbers.

    Raises:
        SourceError: Nothing there, or not what the kind says.
        ConfigError: An argument is missing.
    """
    path = Path(source)
    if not path.exists():
        raise SourceError(f"{path.absolute()}: no such file or folder.")
    kind = kind or _kind_of(path)
    if kind == "npy":
        return _open_npy(path, fields, ids, labels)
    if kind == "clip-retrieval":
        return _open_clip(path, fields, ids)
    _need_packages("pyarrow" if kind == "parquet" else "datasets")
    options: dict[str, Any] = {"fields": fields, "id_column": ids, "label_column": labels}
    return _open_parquet(path, options) if kind == "parquet" else _open_hf(path, options)


def _kind_of(path: Path) -> Kind:
    if path.suffix == ".npy":
        return "npy"
    if path.suffix == ".parquet":
        return "parquet"
    if path.is_dir():
        if (path / "img_emb").is_dir() or (path / "text_emb").is_dir():
            return "clip-retrieval"
        if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            return "hf"
        if any(path.rglob("*.parquet")):
            return "parquet"
        if any(path.glob("*.npy")):
            return "npy"
    raise SourceError(
        f"{path.absolute()}: neither an npy or Parquet file nor a folder of Parquet files, of a saved Hugging Face "
        "data set or of clip-retrieval (img_emb/). Say which with --kind."
    )


def _need_packages(name: str) -> None:
    try:
        __import__(name)
    except ImportError as error:
        raise SourceError(f"the package {name!r} cannot be imported ({error}): {INSTALL}") from None


def _open_npy(
    path: Path, fields: Mapping[str, str] | None, ids: str | None, labels: str | None
) -> NpyTable:
    if ids is None:
        raise ConfigError(
            f"{path}: npy files have no ids. Give a file with one sample id per line: --ids ids.txt"
        )
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        named = fields or {item.stem: item.name for item in sorted(path.glob("*.npy"))}
        files = {name: [folder / file] for name, file in named.items()}
    else:
        files = {next(iter(fields)) if fields else path.stem: [path]}
    beside = {Path(name).resolve() for name in (ids, labels) if name}
    if path.is_dir() and not fields:
        files = {name: items for name, items in files.items() if items[0].resolve() not in beside}
    return NpyTable(files, [str(item) for item in _lines(ids)], _labels(labels) if labels else None)


def _lines(name: str) -> list[Any]:
    """Lines of a text file without the empty ones at its end, or values of an npy file."""
    path = Path(name)
    try:
        if path.suffix == ".npy":
            values: list[Any] = read_npy(path).tolist()
            return values
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SourceError(f"{path.absolute()}: cannot be read ({error}).") from None
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _labels(name: str) -> list[Any]:
    """Labels of a file: numbers if all of them are; an empty line is an unknown one."""
    given = _lines(name)
    if all(isinstance(label, str) and re.fullmatch(r"(-?[0-9]+)?", label) for label in given):
        return [int(label) if label else None for label in given]
    return [None if label == "" else label for label in given]


def _open_clip(path: Path, fields: Mapping[str, str] | None, ids: str | None) -> NpyTable:
    """clip-retrieval's ``img_emb/img_emb_0.npy``, ``text_emb/...`` and ``metadata/metadata_0.parquet``."""
    _need_packages("pyarrow")
    import pyarrow.parquet as pq

    folders = fields or {
        name: name for name in ("img_emb", "text_emb") if any((path / name).glob("*.npy"))
    }
    files = {name: _numbered(path / folder, ".npy") for name, folder in folders.items()}
    metadata = _numbered(path / "metadata", ".parquet")
    if not files or not metadata or not all(files.values()):
        raise SourceError(
            f"{path.absolute()}: expected img_emb/img_emb_0.npy and metadata/metadata_0.parquet."
        )
    names: list[str] = []
    for file in metadata:
        known = pq.read_schema(file).names
        column = ids or next((name for name in ("image_path", *ID_COLUMNS) if name in known), None)
        if column is None or column not in known:
            raise SourceError(
                f"{file}: no column {column or 'of ids'}; its columns are {shorten(known, 20)}. Name one with --ids."
            )
        table = pq.read_table(file, columns=[column])
        names += [str(value) for value in table.column(0).to_pylist()]
    return NpyTable(files, names, kind="clip-retrieval")


def _numbered(folder: Path, suffix: str) -> list[Path]:
    """Files in the order of the numbers in their names: part 10 follows part 9."""
    paths = folder.glob(f"*{suffix}")
    return sorted(
        paths, key=lambda path: ([int(n) for n in re.findall("[0-9]+", path.stem)], path.name)
    )


def _open_parquet(path: Path, options: dict[str, Any]) -> ArrowTable:
    import pyarrow.parquet as pq

    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise SourceError(f"{path.absolute()}: no Parquet file there.")

    def read(columns: Sequence[str], start: int, step: int) -> Iterator[Any]:
        before = 0
        for file in files:
            with pq.ParquetFile(file) as opened:
                for group in range(opened.num_row_groups):
                    rows = opened.metadata.row_group(group).num_rows
                    if before + rows <= start:
                        before += rows
                        continue
                    for batch in opened.iter_batches(step, row_groups=[group], columns=columns):
                        skipped = max(0, start - before)
                        before += len(batch)
                        if skipped < len(batch):
                            yield batch.slice(skipped)

    try:
        return ArrowTable("parquet", str(path), pq.read_schema(files[0]), read, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise SourceError(f"{path.absolute()}: cannot be read as Parquet ({error}).") from None


def _open_hf(path: Path, options: dict[str, Any]) -> ArrowTable:
    from datasets import concatenate_datasets, load_from_disk

    try:
        found = load_from_disk(str(path))
        splits = dict(found) if isinstance(found, dict) else {"": found}
        whole = concatenate_datasets(list(splits.values()))
    except Exception as error:  # many types, depending on what is broken in the folder
        raise SourceError(
            f"{path.absolute()}: cannot be opened as a saved data set ({error})."
        ) from None
    default_ids = [
        f"{name}/{row:08d}" if name else f"{row:08d}"
        for name, split in splits.items()
        for row in range(len(split))
    ]  # those of the source kind hf

    def read(columns: Sequence[str], start: int, step: int) -> Iterator[Any]:
        chosen = whole.select_columns(list(columns)).with_format("arrow")
        for row in range(start, len(chosen), step):
            yield chosen[row : row + step]

    schema = whole.features.arrow_schema
    return ArrowTable("hf", str(path), schema, read, default_ids=default_ids, **options)

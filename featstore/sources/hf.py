"""A Hugging Face data set that ``save_to_disk`` wrote; ids are split and position."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.errors import SourceError, shorten
from featstore.sources.base import NO_LABEL, Source

INSTALL = 'pip install "featstore-distill[hf]"'


class HFSource(Source):
    """Rows of a ``Dataset`` (id ``00000012``) or a ``DatasetDict`` (id ``train/00000012``).

    Args:
        path: the folder that ``save_to_disk`` wrote.
        image_column: a column of images, of file bytes, or of file paths.
        label_column: classes as ``ClassLabel``, integers or text; it may be missing.

    Raises:
        SourceError: ``datasets`` is not installed, nothing readable there, or columns do not fit.
    """

    def __init__(
        self, path: str, *, image_column: str = "image", label_column: str = "label"
    ) -> None:
        self.kind = "hf"
        self.uri = path
        self._path = str(Path(path).absolute())
        self._image_column = image_column
        # No note of data sets in the state: each process maps the files anew (see __getstate__).
        self._splits: dict[str, Any] | None = self._open()
        self._names = tuple(self._splits)
        sizes = [len(split) for split in self._splits.values()]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        self.sample_ids = [
            f"{name}/{index:08d}" if name else f"{index:08d}"
            for name, size in zip(self._names, sizes, strict=True)
            for index in range(size)
        ]
        self.labels, self.class_names = _labels(self._splits, label_column, path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_splits": None}

    def read(self, row: int) -> bytes:
        """Return the bytes of one image, from the table or from the file that it points to."""
        if self._splits is None:
            self._splits = self._open()
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        split = self._splits[self._names[number]]
        value = split[int(row - self._starts[number])][self._image_column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if value.get("path"):
            return Path(value["path"]).read_bytes()
        raise OSError(f"{self.uri}: {self.sample_ids[row]} has neither bytes nor a path")

    def _open(self) -> dict[str, Any]:
        """Map the files; a ``Dataset`` counts as one split without a name."""
        datasets = _import_datasets()
        if not Path(self._path).is_dir():
            raise SourceError(
                f"{self.uri}: no such folder. Expected what save_to_disk wrote (--source.path)."
            )
        try:
            found = datasets.load_from_disk(self._path)
        except Exception as error:  # many types, depending on what is broken in the folder
            raise SourceError(
                f"{self.uri}: cannot be opened as a saved data set ({type(error).__name__}: "
                f"{error}). Expected the folder that Dataset.save_to_disk or "
                "DatasetDict.save_to_disk wrote; for image files use --source.kind folder."
            ) from error
        splits = dict(found) if isinstance(found, dict) else {"": found}
        return {name: self._only_images(name, split, datasets) for name, split in splits.items()}

    def _only_images(self, name: str, split: Any, datasets: Any) -> Any:
        where = f"{self.uri}: split {name!r}" if name else self.uri
        if self._image_column not in split.column_names:
            raise SourceError(
                f"{where} has no column {self._image_column!r}; its columns are "
                f"{shorten(split.column_names, 20)}. Name one with --source.image_column."
            )
        try:
            return split.with_format(None).cast_column(
                self._image_column, datasets.Image(decode=False)
            )
        except Exception as error:  # pyarrow's own errors; the library raises several types
            raise SourceError(
                f"{where}: column {self._image_column!r} is of type "
                f"{split.features[self._image_column]}, which cannot be read as images ({error}). "
                "Name a column of images, file bytes or file paths with --source.image_column."
            ) from error


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise SourceError(
            f"source of kind hf: the package 'datasets' cannot be imported ({error}). "
            f"Install it: {INSTALL}"
        ) from None
    return datasets


def _labels(
    splits: dict[str, Any], column: str, where: str
) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...]]:
    """Return (N,) classes over all splits, and the names if there are any."""
    columns = {
        name: split.select_columns([column]).with_format("arrow")[:].column(0)
        for name, split in splits.items()
        if column in split.column_names
    }
    if not columns:
        return None, ()
    features = {name: splits[name].features[column] for name in columns}
    kinds = {str(feature) for feature in features.values()}
    if len(kinds) > 1:
        raise SourceError(
            f"{where}: the splits disagree about column {column!r}: {shorten(sorted(kinds))}. "
            "Classes would mean different things; cast them to one type and save again."
        )
    feature = next(iter(features.values()))
    dtype = str(getattr(feature, "dtype", feature))
    names = getattr(feature, "names", None)
    if dtype in ("string", "large_string"):
        names = sorted(
            {value for column in columns.values() for value in column.to_pylist()} - {None}
        )
    elif not dtype.startswith(("int", "uint")):
        raise SourceError(
            f"{where}: column {column!r} is of type {kinds.pop()}; expected classes (ClassLabel, "
            "integers or text). Name another column with --source.label_column, or one that does "
            "not exist for no labels."
        )
    parts = [
        _numbers(columns[name], names if "string" in dtype else None)
        if name in columns
        else np.full(len(split), NO_LABEL, dtype=np.int64)
        for name, split in splits.items()
    ]
    labels = np.concatenate(parts)
    return (labels, tuple(names or ())) if (labels != NO_LABEL).any() else (None, ())


def _numbers(column: Any, names: list[str] | None) -> npt.NDArray[np.int64]:
    index: dict[Any, int] = {name: number for number, name in enumerate(names or ())}
    values = (
        NO_LABEL if value is None else index[value] if names is not None else value
        for value in column.to_pylist()
    )
    return np.fromiter(values, dtype=np.int64, count=len(column))

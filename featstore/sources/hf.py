"""A Hugging Face data set that ``save_to_disk`` wrote; ids are split and position. Parquet files: see ``parquet.py``.

Images are files (``Image``, bytes, paths) or arrays of numbers. Arrays become binary PGM or PPM files, of 8 bits where
the column's type or its largest value says so, else of 16.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.errors import SourceError, shorten
from featstore.sources.base import NO_LABEL, Source
from featstore.sources.labels import check_labels, ignore_negative

INSTALL = 'pip install "featstore-distill[hf]"'


class HFSource(Source):
    """Rows of a ``Dataset`` (id ``00000012``) or a ``DatasetDict`` (id ``train/00000012``).

    Args:
        path: the folder that ``save_to_disk`` wrote.
        image_column: a column of images, of file bytes, of file paths, or of arrays of integers.
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
        self.notes = []
        self._deep: dict[str, bool] = {}
        # Not pickled: each process maps the files anew (see __getstate__).
        self._splits: dict[str, Any] | None = self._open()
        for name, split in self._splits.items():
            if _is_array(split, image_column):
                self._deep[name] = self._has_16_bits(name, split)
        self._names = tuple(self._splits)
        sizes = [len(split) for split in self._splits.values()]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        self.sample_ids = [
            f"{name}/{index:08d}" if name else f"{index:08d}"
            for name, size in zip(self._names, sizes, strict=True)
            for index in range(size)
        ]
        self.labels, self.class_names = _labels(self._splits, label_column, path, self.notes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_splits": None}

    def read(self, row: int) -> bytes:
        """Return the bytes of one image, from the table or from the file that it points to."""
        if self._splits is None:
            self._splits = self._open()
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        split = self._splits[self._names[number]]
        name = self._names[number]
        try:
            value = split[int(row - self._starts[number])][self._image_column]
        except (OSError, MemoryError):
            raise
        except Exception as error:  # pyarrow's own errors have no common base
            raise OSError(f"{type(error).__name__}: {error}") from error
        if name in self._deep:
            return encode_array(value, deep=self._deep[name])
        value = value or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if value.get("path"):
            return Path(value["path"]).read_bytes()
        raise OSError(f"{self.uri}: {self.sample_ids[row]} has neither bytes nor a path")

    def _has_16_bits(self, name: str, split: Any) -> bool:
        """Whether numbers of an array column are 16-bit levels; asks the type, then the largest value."""
        where = f"{self.uri}: split {name!r}" if name else self.uri
        dtype = _leaf(split.features[self._image_column])
        if dtype == "uint8":
            return False
        if dtype == "uint16":
            return True
        if not dtype.startswith(("int", "uint")):
            raise SourceError(
                f"{where}: column {self._image_column!r} holds arrays of {dtype}; expected integers from 0 to 255 "
                "(or 65535), because the range of other numbers is not stated. Cast them and save the data set again."
            )
        low, high = _extremes(split, self._image_column)
        if low < 0 or high > 65535:
            raise SourceError(
                f"{where}: column {self._image_column!r} holds arrays with values {low}..{high}; expected 0..255 or "
                "0..65535. Scale them and save the data set again."
            )
        levels = 255 if high <= 255 else 65535
        self.notes.append(
            f"{where}: column {self._image_column!r} holds arrays of {dtype} with values {low}..{high}: taken as "
            f"levels from 0 to {levels}. Cast it to uint8 or uint16 to state this."
        )
        return levels == 65535

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
                "DatasetDict.save_to_disk wrote, or Parquet files; for image files use --source.kind folder."
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
        if _is_array(split, self._image_column):
            return split.with_format("numpy", columns=[self._image_column])
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


def _is_array(split: Any, column: str) -> bool:
    """Whether a column holds nested numbers, rather than images, bytes or paths."""
    feature = split.features[column]
    return hasattr(feature, "shape") or hasattr(feature, "feature")


def _leaf(feature: Any) -> str:
    """Type of the numbers of a nested column."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", feature))


def _extremes(split: Any, column: str) -> tuple[int, int]:
    """Smallest and largest number of a nested column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    low, high = 0, 0
    for chunk in split.select_columns([column]).with_format("arrow")[:].column(0).chunks:
        values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = values.flatten()
        found = pc.min_max(values).as_py()
        low, high = min(low, found["min"] or 0), max(high, found["max"] or 0)
    return low, high


def encode_array(value: Any, *, deep: bool) -> bytes:
    """Write an array as a binary PGM (grey) or PPM (colour) file.

    Raises:
        OSError: it is no picture: no numbers, ragged, or of another number of channels.
    """
    pixels = np.asarray(value if value is not None else [])
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)  # channels first
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    colour = pixels.ndim == 3
    if pixels.dtype.kind not in "iu" or not pixels.size or (colour and pixels.shape[-1] != 3):
        raise OSError(f"an array of shape {pixels.shape} and type {pixels.dtype} is no picture")
    if pixels.ndim not in (2, 3):
        raise OSError(f"an array of shape {pixels.shape} is no picture")
    height, width = pixels.shape[:2]
    levels = 65535 if deep else 255
    data = pixels.astype(">u2" if deep else "u1").tobytes()
    return b"P%d\n%d %d\n%d\n" % (6 if colour else 5, width, height, levels) + data


def _labels(
    splits: dict[str, Any], column: str, where: str, notes: list[str]
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
        class_numbers(columns[name], names if "string" in dtype else None)
        if name in columns
        else np.full(len(split), NO_LABEL, dtype=np.int64)
        for name, split in splits.items()
    ]
    labels = np.concatenate(parts)
    if not names:
        return check_labels(labels, where=where, notes=notes)
    labels = named_labels(labels, names, where=f"{where}: column {column!r}", notes=notes)
    return (labels, tuple(names)) if (labels != NO_LABEL).any() else (None, ())


def named_labels(
    labels: npt.NDArray[np.int64], names: Sequence[str], *, where: str, notes: list[str]
) -> npt.NDArray[np.int64]:
    """Check (N,) classes that have names; negative numbers become ``NO_LABEL``."""
    labels = ignore_negative(labels, where=where, notes=notes)
    if labels.max(initial=NO_LABEL) >= len(names):
        raise SourceError(
            f"{where} holds the class {labels.max()}, but has {len(names)} names: {shorten(list(names))}. Save the "
            "data set again with a name for each class."
        )
    return labels


def class_numbers(column: Any, names: list[str] | None) -> npt.NDArray[np.int64]:
    """(n,) classes of an Arrow column: integers, or texts by their place in ``names``; null is no class."""
    index: dict[Any, int] = {name: number for number, name in enumerate(names or ())}
    values = (
        NO_LABEL if value is None else index[value] if names is not None else value
        for value in column.to_pylist()
    )
    try:
        return np.fromiter(values, dtype=np.int64, count=len(column))
    except OverflowError:
        raise SourceError(
            "class numbers of 64 bits without a sign are ids, not classes. Name another column with "
            "--source.label_column, or one that does not exist for no labels."
        ) from None

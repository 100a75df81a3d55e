"""Labels from a table beside the images: a CSV or Parquet file with one row per image."""

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featstore.errors import ConfigError, shorten
from featstore.sources.base import NO_LABEL, Source

IDS = ("id", "sample_id", "image", "image_id", "path", "file", "file_name", "filename", "name")
"""Names of the column that says which image is meant; the first one found counts, else the first column."""
LABELS = ("label", "class", "category", "target")
"""Names of the column with the label; the first one found counts, else the second column."""


def apply_labels(source: Source, path: Path) -> None:
    """Replace the labels of a source by those of a file. Images that the file does not name have no label.

    An image is named by its sample id, with or without its folders and its ending where that is unique.

    Args:
        source: Changed in place: labels, class names and notes.
        path: CSV (with a header) or Parquet.

    Raises:
        ConfigError: The file cannot be read, names an image twice with different labels, or none of the images.
    """
    rows = read_table(path)
    where = f"--source.labels {path.absolute()}"
    label_of: dict[str, str] = {}
    for name, label in rows:
        if label_of.setdefault(name, label) != label:
            raise ConfigError(
                f"{where}: {name} has two labels, {label_of[name]} and {label}. One label per image is read."
            )
    known = {name: label for name, label in label_of.items() if label}
    found = _match(source.sample_ids, known)
    if not found:
        raise ConfigError(
            f"{where}: names none of the {len(source):,} images of {source.uri}. The file has "
            f"{shorten(list(label_of), 3)}, the images are {shorten(list(source.sample_ids[:3]), 3)}."
        )
    names = tuple(sorted(set(known.values()), key=_number_or_text))
    index = {name: number for number, name in enumerate(names)}
    labels = np.full(len(source), NO_LABEL, np.int64)
    for row, name in found.items():
        labels[row] = index[known[name]]
    source.labels, source.class_names = labels, names
    notes = [f"{len(found):,} of {len(source):,} images have a label in {path}"]
    if absent := sorted(known.keys() - set(found.values())):
        notes.append(f"{len(absent):,} rows of {path} name no image here: {shorten(absent)}")
    source.notes = [*source.notes, *notes]


def read_table(path: Path) -> list[tuple[str, str]]:
    """(image, label) of every row, as text.

    Raises:
        ConfigError: The file cannot be read, or has less than two columns.
    """
    where = f"--source.labels {path.absolute()}"
    try:
        if path.suffix == ".parquet":
            head, columns = _read_parquet(path)
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = [row for row in csv.reader(file) if row]
            head = rows[0] if rows else []
            short = [number for number, row in enumerate(rows, 1) if len(row) < len(head)]
            if short:
                raise ConfigError(f"{where}: row {short[0]} has fewer columns than the header.")
            columns = list(zip(*rows[1:], strict=False))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror or error}).") from None
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: is no table ({error}).") from None
    if len(head) < 2 or not columns:
        raise ConfigError(f"{where}: expected a header and rows with two columns, id and label.")
    ids, labels = (_column(head, names, place) for place, names in enumerate((IDS, LABELS)))
    return [
        (str(name).strip(), _text(label))
        for name, label in zip(columns[ids], columns[labels], strict=True)
    ]


def _read_parquet(path: Path) -> tuple[list[str], list[Sequence[object]]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError(
            f"--source.labels {path}: Parquet needs pyarrow: pip install 'featstore-distill[hf]', or give a CSV file."
        ) from None
    table: Any = parquet.read_table(path)
    return table.column_names, [column.to_pylist() for column in table.columns]


def _column(head: Sequence[str], names: Sequence[str], otherwise: int) -> int:
    lower = [name.strip().lower() for name in head]
    return next((lower.index(name) for name in names if name in lower), otherwise)


def _text(label: object) -> str:
    return "" if label is None else str(label).strip()


def _number_or_text(name: str) -> tuple[int, int, str]:
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def _match(sample_ids: Sequence[str], known: dict[str, str]) -> dict[int, str]:
    """By row, the name in the file that means it: the id, else its last part, else that without its ending."""
    found = {row: name for row, name in enumerate(sample_ids) if name in known}
    shortened: Sequence[Callable[[str], str]] = (
        lambda name: Path(name).name,
        lambda name: Path(name).stem,
    )
    for shorter in shortened:
        if len(found) == len(sample_ids):
            break
        times = Counter(map(shorter, sample_ids))
        for row, name in enumerate(sample_ids):
            short = shorter(name)
            if row not in found and short in known and times[short] == 1:
                found[row] = short
    return found

"""Labels from a table beside the images: a CSV or Parquet file with one row per image."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError, shorten
from featstore.sources.base import NO_LABEL, Source

IDS = ("id", "sample_id", "image", "image_id", "path", "file", "file_name", "filename", "name")
"""Names of the column that says which image is meant; the first one found counts, else the first column."""
LABELS = ("label", "class", "category", "target")
"""Names of the column with the label; the first one found counts, else the second column."""
SEPARATOR = re.compile(r"[;|]")  # between the labels of one cell
FLAGS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": -1}
"""What a cell of a column for one label means."""


def apply_labels(source: Source, path: Path) -> None:
    """Replace the labels of a source by those of a file. Images that the file does not name have no label.

    An image is named by its sample id, with or without its folders and its ending where that is unique. A file has
    several labels per image where a cell holds more than one, or where it has a column of 0 and 1 for each label.

    Args:
        source: Changed in place: labels or label_sets, class names and notes.
        path: CSV (with a header) or Parquet.
    """
    where = f"--source.labels {path.absolute()}"
    head, columns = read_columns(path, "--source.labels")
    ids = _column(head, IDS, 0)
    flags = _flag_columns(head, columns, ids)
    cells = [columns[at] for at in flags] or [columns[_column(head, LABELS, 1)]]
    label_of: dict[str, tuple[str, ...]] = {}
    for name, *row in zip(columns[ids], *cells, strict=True):
        labels = tuple(_text(cell) for cell in row)
        if (known := label_of.setdefault(str(name).strip(), labels)) != labels:
            raise ConfigError(
                f"{where}: {name} stands there twice, with {_shown(known)} and {_shown(labels)}. Give one row per "
                "image, and several labels in one cell (cat;dog)."
            )
    found = match_names(
        source.sample_ids, {name for name, labels in label_of.items() if any(labels)}
    )
    if not found:
        raise ConfigError(
            f"{where}: names none of the {len(source):,} images of {source.uri}. The file has "
            f"{shorten(list(label_of), 3)}, the images are {shorten(list(source.sample_ids[:3]), 3)}."
        )
    rows = {row: label_of[name] for row, name in found.items()}
    separated = not flags and any(_several(labels[0]) for labels in label_of.values())
    notes = [f"{len(found):,} of {len(source):,} images have a label in {path}"]
    if flags or separated:
        names = [head[at].strip() for at in flags] if flags else _all_labels(label_of)
        source.labels, source.class_names = None, tuple(names)
        source.label_sets = _sets(rows, names, len(source), flags=bool(flags))
        notes.append(f"{path}: several labels per image, {len(names)} in all: {shorten(names)}")
    else:
        source.class_names = tuple(_all_labels(label_of))
        index = {name: number for number, name in enumerate(source.class_names)}
        source.labels = np.full(len(source), NO_LABEL, np.int64)
        for place, own in rows.items():
            source.labels[place] = index[own[0]]
    absent = {name for name, labels in label_of.items() if any(labels)} - set(found.values())
    if absent:
        notes.append(
            f"{len(absent):,} rows of {path} name no image here: {shorten(sorted(absent))}"
        )
    source.notes = [*source.notes, *notes]


def _flag_columns(head: Sequence[str], columns: Sequence[Sequence[object]], ids: int) -> list[int]:
    """Columns of 0 and 1, one for each label; none if the file has a column with labels, or only one."""
    if any(name.strip().lower() in LABELS for name in head):
        return []
    others = [at for at in range(len(head)) if at != ids]
    plain = all(_text(cell).lower() in FLAGS for at in others for cell in columns[at])
    return others if plain and len(others) > 1 else []


def _several(label: str) -> list[str]:
    """The labels of a cell; empty if it holds one at most."""
    parts = [part.strip() for part in SEPARATOR.split(label)]
    return [part for part in parts if part] if len(parts) > 1 else []


def _all_labels(label_of: Mapping[str, Sequence[str]]) -> list[str]:
    cells = [labels[0] for labels in label_of.values() if labels[0]]
    return list(sort_classes(part for cell in cells for part in _several(cell) or [cell]))


def _sets(
    rows: Mapping[int, Sequence[str]], names: Sequence[str], count: int, *, flags: bool
) -> npt.NDArray[np.int8]:
    """(count, C): 1, 0, or -1 where unknown."""
    sets = np.full((count, len(names)), -1, np.int8)
    index = {name: number for number, name in enumerate(names)}
    for row, cells in rows.items():
        if flags:
            sets[row] = [FLAGS[cell.lower()] for cell in cells]
        else:
            sets[row] = 0
            sets[row, [index[part] for part in _several(cells[0]) or cells]] = 1
    return sets


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "none"


def read_columns(path: Path, setting: str) -> tuple[list[str], list[Sequence[object]]]:
    """Header and columns of a CSV or Parquet file.

    Args:
        setting: For messages, e.g. ``--source.labels``.
    """
    where = f"{setting} {path.absolute()}"
    try:
        if path.suffix == ".parquet":
            head, columns = _read_parquet(path, setting)
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = [row for row in csv.reader(file) if row]
            head = rows[0] if rows else []
            for number, row in enumerate(rows, 1):
                if len(row) < len(head) or any(row[len(head) :]):
                    raise ConfigError(
                        f"{where}: row {number} has {len(row)} columns, the header {len(head)}."
                    )
            columns = list(zip(*rows[1:], strict=False))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror or error}).") from None
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: is no table ({error}).") from None
    if len(head) < 2 or not columns:
        raise ConfigError(
            f"{where}: expected a header and rows with two columns or more, id first."
        )
    return head, columns


def _read_parquet(path: Path, setting: str) -> tuple[list[str], list[Sequence[object]]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError(
            f"{setting} {path}: Parquet needs pyarrow: pip install 'featstore-distill[hf]', or give a CSV file."
        ) from None
    table: Any = parquet.read_table(path)
    return table.column_names, [column.to_pylist() for column in table.columns]


def _column(head: Sequence[str], names: Sequence[str], otherwise: int) -> int:
    lower = [name.strip().lower() for name in head]
    return next((lower.index(name) for name in names if name in lower), otherwise)


def _text(label: object) -> str:
    if isinstance(label, list | tuple):  # of Parquet; a single label too may be one of several
        return ";".join(str(item) for item in label) + ";" * (len(label) == 1)
    return "" if label is None else str(label).strip()


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Different names in order: numbers by value, then other names."""
    return tuple(sorted(set(names), key=_number_or_text))


def _number_or_text(name: str) -> tuple[int, int, str]:
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def match_names(sample_ids: Sequence[str], known: Collection[str]) -> dict[int, str]:
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

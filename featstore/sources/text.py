"""Texts in a table, JSONL or Parquet: columns id and text, and language, pair, image and label where known."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from featstore.errors import SourceError, shorten
from featstore.sources.base import NO_LABEL, Source
from featstore.sources.config import TEXT_SUFFIXES, SourceConfig
from featstore.sources.label_file import sort_classes

Row = dict[str, Any]

ID, PAIR, IMAGE = "id", "pair", "image"


class TextSource(Source):
    """Texts by id, in the order of the file. The content of a sample is its text in UTF-8, as it is written.

    Raises:
        SourceError: the table cannot be read, lacks a column, or has a row without id or text.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.kind = "text"
        self.uri = config.path
        rows = read_table(Path(config.path))
        columns = list(dict.fromkeys(name for row in rows for name in row))
        language = _language_column(config, columns)
        for name in (ID, config.text_column):
            if name not in columns:
                raise SourceError(
                    f"{self.uri}: no column {name!r}; it has {shorten(columns, 8)}. Expected id and text "
                    "(--source.text_column names another column with texts)."
                )
        for place, row in enumerate(rows, 1):
            _check_row(row, place, self.uri, text=config.text_column, language=language)
        if config.languages:
            rows = _of_languages(rows, language, config)
        self.sample_ids = [str(row[ID]) for row in rows]
        self.languages = [row[language] for row in rows] if language else ()
        self.pairs, self.images = (
            [str(row.get(name, "")) for row in rows] if name in columns else ()
            for name in (PAIR, IMAGE)
        )
        self._texts = [row[config.text_column] for row in rows]
        self._label([row.get(config.label_column) for row in rows])

    def read(self, row: int) -> bytes:
        """Return one text in UTF-8."""
        return self._texts[row].encode()  # type: ignore[no-any-return]

    def _label(self, values: list[Any]) -> None:
        names = ["" if value is None else str(value) for value in values]
        self.class_names = sort_classes(name for name in names if name)
        if self.class_names:
            number = {name: index for index, name in enumerate(self.class_names)}
            self.labels = np.array([number.get(name, NO_LABEL) for name in names], np.int64)


def read_table(path: Path) -> list[Row]:
    """Return the rows of a JSONL or Parquet file, at least one."""
    if path.suffix not in TEXT_SUFFIXES:
        raise SourceError(f"{path}: expected a file that ends in {' or '.join(TEXT_SUFFIXES)}.")
    try:
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if not rows:
        raise SourceError(f"{path}: no rows.")
    return rows


def _read_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:  # also bytes that are not UTF-8
                raise SourceError(
                    f"{path}: line {number} is not JSON in UTF-8 ({error})."
                ) from None
            if not isinstance(row, dict):
                raise SourceError(f"{path}: line {number} is not a JSON object.")
            rows += [row] if row else []
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise SourceError(
            f"{path}: Parquet needs pyarrow: pip install 'featstore-distill[hf]', or give a .jsonl file."
        ) from None
    try:
        table: Any = parquet.read_table(path)
    except ArrowException as error:
        raise SourceError(f"{path}: is not readable as Parquet ({error}).") from None
    return table.to_pylist()  # type: ignore[no-any-return]


def _language_column(config: SourceConfig, columns: list[str]) -> str:
    """The column with languages; "" if there is none and nobody asked for it."""
    asked = config.language_column != SourceConfig.language_column
    if config.language_column in columns:
        return config.language_column
    if asked or config.languages:
        raise SourceError(
            f"{config.path}: no column {config.language_column!r} with languages; it has {shorten(columns, 8)}. Name "
            "it with --source.language_column."
        )
    return ""


def _check_row(row: Row, place: int, uri: str, *, text: str, language: str) -> None:
    where = f"{uri}: row {place} ({row.get(ID)!r})"
    if row.get(ID) in (None, ""):
        raise SourceError(f"{uri}: row {place} has no id. Every text needs one.")
    value = row.get(text)
    if not isinstance(value, str) or not value.strip():
        raise SourceError(
            f"{where} has no text: column {text!r} holds {value!r}. Write one, or remove the row."
        )
    if language and not (isinstance(row.get(language), str) and row[language]):
        raise SourceError(
            f"{where} has no language: column {language!r} holds {row.get(language)!r}."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{where}: its text cannot be written in UTF-8 ({error}).") from None


def _of_languages(rows: list[Row], language: str, config: SourceConfig) -> list[Row]:
    known = sorted({row[language] for row in rows})
    unknown = [name for name in config.languages if name not in known]
    if unknown:
        raise SourceError(
            f"--source.languages {' '.join(config.languages)}: {config.path} has no text in {shorten(unknown)}; its "
            f"languages are {shorten(known, 12)}."
        )
    return [row for row in rows if row[language] in config.languages]

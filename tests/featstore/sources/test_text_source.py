"""Texts in JSONL and Parquet files."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from featstore.errors import ConfigError, SourceError
from featstore.format.ids import content_sha256
from featstore.sources import Source, open_source
from featstore.sources.config import SourceConfig, source_of
from tests import texts

GOOD = {"id": "a", "language": "en", "text": "one"}


def opened(path: Path, **settings: object) -> Source:
    return open_source(SourceConfig(kind="text", path=str(path), **settings))  # type: ignore[arg-type]


def test_rows_of_a_file(tmp_path: Path) -> None:
    """Ids, languages, pairs and labels are in the order of the file; the content is the UTF-8 of the text."""
    table: list[dict[str, Any]] = [
        {"id": "b", "language": "zh", "text": "\u72d7 ", "pair": 7, "label": "10"},
        {"id": 3, "language": "en", "text": "dog", "pair": 7, "label": 9},
        {"id": "c", "language": "en", "text": "cat", "label": None},
    ]
    source = opened(texts.write(tmp_path / "t.jsonl", table))
    assert list(source.sample_ids) == ["b", "3", "c"]
    assert (list(source.languages), list(source.pairs)) == (["zh", "en", "en"], ["7", "7", ""])
    assert source.class_names == ("9", "10")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, -1]
    assert source.read(0) == b"\xe7\x8b\x97 "
    assert pickle.loads(pickle.dumps(source)).read(1) == b"dog"


def test_parquet_is_read_as_jsonl_is(tmp_path: Path) -> None:
    """The same rows in either form give the same source; a part by language or pattern keeps languages and pairs."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = texts.rows(6)
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "t.parquet")
    texts.write(tmp_path / "t.jsonl", table)
    found = [
        opened(tmp_path / f"t.{kind}", languages=["xx"], include=["train/*"])
        for kind in ("jsonl", "parquet")
    ]
    for source in found:
        assert list(source.sample_ids) == [f"train/{number:03d}.xx" for number in range(1, 6)]
        assert set(source.languages) == {"xx"}
        assert list(source.pairs) == ["1", "2", "3", "4", "5"]
    hashes = [[content_sha256(source.read(row)) for row in range(5)] for source in found]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.parquet"])
def test_the_kind_is_detected(name: str) -> None:
    """By the ending of the path."""
    assert source_of(name) == {"kind": "text", "path": name}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "b", "language": "en", "text": ""}, ["row 2", "'b'", "text"]),
        ({"id": "b", "language": "en", "text": " \n"}, ["row 2", "'b'"]),
        ({"id": "b", "language": "en"}, ["row 2", "'b'", "None"]),
        ({"id": "b", "language": "en", "text": 5}, ["row 2", "5"]),
        ({"id": "b", "language": "", "text": "two"}, ["row 2", "'language'"]),
        ({"id": "b", "text": "two"}, ["row 2", "'language'"]),
        ({"language": "en", "text": "two"}, ["row 2", "id"]),
        ({"id": "a", "language": "en", "text": "two"}, ["more than once", "a"]),
        ({"id": "b", "language": "en", "text": "\ud800"}, ["row 2", "UTF-8"]),
    ],
)
def test_rows_that_are_refused(row: dict[str, object], words: list[str], tmp_path: Path) -> None:
    """Empty text, no language, no id, a repeated id: named by row and id."""
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, [GOOD, row])))
    with pytest.raises(SourceError) as caught:
        opened(path)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("content", "settings", "words"),
    [
        (GOOD, {"language_column": "lang"}, ["'lang'", "language", "text"]),
        (GOOD, {"text_column": "body"}, ["'body'", "text"]),
        (GOOD, {"languages": ["en", "fr"]}, ["fr", "en"]),
        ({"id": "a", "text": "one"}, {"languages": ["en"]}, ["'language'"]),
        ("{", {}, ["line 1", "JSON"]),
        ("[1]", {}, ["line 1", "object"]),
        ("", {}, ["no rows"]),
    ],
)
def test_tables_that_are_refused(
    content: object, settings: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    """A column or a language that is not there is named beside those that are; what is no table is an error."""
    path = tmp_path / "t.jsonl"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SourceError) as caught:
        opened(path, **settings)
    assert all(word in str(caught.value) for word in [*words, str(path)])


def test_no_language_column_is_needed(tmp_path: Path) -> None:
    """Texts of one language need not name it."""
    path = texts.write(tmp_path / "t.jsonl", [{"id": "a", "text": "one"}])
    assert list(opened(path).languages) == []


def test_settings_of_texts_are_refused_for_images() -> None:
    """Languages of a folder of images mean nothing."""
    with pytest.raises(ConfigError, match="languages"):
        SourceConfig(kind="folder", path="x", languages=["en"])


def test_damaged_parquet(tmp_path: Path) -> None:
    """Named by path."""
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SourceError, match=r"t\.parquet"):
        opened(tmp_path / "t.parquet")

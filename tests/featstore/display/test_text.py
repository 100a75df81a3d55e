"""Tables, counts, sizes and times as text."""

import pytest

from featstore.display import text


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    """Header, rule, rows; no trailing spaces; cells of any type; nothing that a terminal would obey."""
    found = text.columns([("name", "rows"), ("a", 12), ("longer", "1")])
    assert found.splitlines() == ["name    rows", "------------", "a       12", "longer  1"]
    assert text.columns([("x", ""), ("y", "")], rule=False).splitlines() == ["x", "y"]
    assert text.columns([("x",), ("\x1b[31m",)]).splitlines()[2] == "\\x1b[31m"


def test_markdown_tables_align_numbers_and_keep_their_columns() -> None:
    """A column of numbers is aligned to the right; a vertical bar in a cell opens no column."""
    head, rule, row, other = text.markdown_table(
        ("a|b", "n", "both"), [("x|y", "1.5 MB", "1.2 / 3.4"), ("z\\|", "-", "60.0 +- 1.2")]
    )
    assert head == "| a\\|b | n | both |"
    assert rule == "| --- | ---: | ---: |"
    assert row == "| x\\|y | 1.5 MB | 1.2 / 3.4 |"
    assert other.startswith("| z\\| |")
    assert text.markdown_table(("a",), []) == ["| a |", "| --- |"]


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (1, "shard", "1 shard"),
        (0, "shard", "0 shards"),
        (1500, "image", "1,500 images"),
        (2, "class", "2 classes"),
        (2, "group of images", "2 groups of images"),
    ],
)
def test_counts_have_their_plural(number: int, noun: str, expected: str) -> None:
    assert text.count(number, noun) == expected


def test_irregular_plurals_are_given() -> None:
    assert text.count(2, "entry", "entries") == "2 entries"
    assert text.count(1, "entry", "entries") == "1 entry"


def test_sizes_rates_and_times() -> None:
    """Three digits in the unit that suits, also just below the next unit."""
    assert [text.format_bytes(size) for size in (0, 999, 999.7, 1500, 999_700, 2.6e9, 7e16)] == [
        "0 B", "999 B", "1 kB", "1.5 kB", "1 MB", "2.6 GB", "7e+04 TB",
    ]  # fmt: skip
    assert text.format_bytes(None) == text.format_seconds(None) == "-"
    assert [text.format_rate(rate) for rate in (0.25, 2.94, 1234.5)] == ["0.25", "2.9", "1,234"]
    assert [text.format_seconds(s) for s in (12, 204, 27000)] == ["12 s", "3.4 min", "7.5 h"]

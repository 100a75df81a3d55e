"""Tables, counts, sizes and times as text, for terminals, messages, cards and pages."""

import re
from collections.abc import Iterable, Sequence

from featstore.errors import printable

NUMBER = r"[+-]?[\d.,]+( (\+-|/) [\d.,]+)?( [kMGT]?B| s| %)?|-"
"""Cells that are aligned to the right in Markdown."""


def columns(rows: Iterable[Sequence[object]], *, rule: bool = True) -> str:
    """A table for a terminal: columns as wide as their longest cell, two spaces apart.

    Args:
        rows: the header first; all of one length. Cells may hold names from outside: what is not printable is escaped.
        rule: draw a line of dashes below the header.
    """
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    if rule:
        lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table of GitHub's Markdown. Columns that hold numbers only are aligned to the right.

    Args:
        rows: cells that are Markdown already; vertical bars are escaped here.
    """
    first, *cells = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in (head, *rows)]
    numbers = [
        bool(cells) and all(re.fullmatch(NUMBER, row[place]) for row in cells)
        for place in range(len(first))
    ]
    lines = [first, ["---:" if right else "---" for right in numbers], *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 shard``, ``2 shards``, ``1,500 images``.

    Args:
        noun: singular; a following phrase is kept, as in ``group of images``.
        plural: of the whole phrase; by default the first word gets an "s", or "es" after "s", "x", "ch" and "sh".
    """
    if number != 1 and not plural:
        word, space, rest = noun.partition(" ")
        plural = f"{word}{'es' if word.endswith(('s', 'x', 'ch', 'sh')) else 's'}{space}{rest}"
    return f"{number:,} {noun if number == 1 else plural}"


def format_bytes(size: float | None) -> str:
    """``1.5 GB``: three digits, powers of ten; a dash for None."""
    if size is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_rate(rate: float) -> str:
    """``1,230`` or ``2.9``."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def format_seconds(seconds: float | None) -> str:
    """``12 s``, ``3.4 min`` or ``7.5 h``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

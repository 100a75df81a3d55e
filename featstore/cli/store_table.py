"""Summaries of stores, as ``featstore list`` and ``featstore delete`` show them."""

from typing import Any

from featstore.errors import printable
from featstore.files.disk import format_bytes
from featstore.maintenance.list_and_delete import Summary


def as_json(summary: Summary) -> dict[str, Any]:
    """A summary as plain JSON values."""
    return {
        "path": str(summary.path),
        "problem": summary.problem,
        "complete": summary.complete,
        "rows": summary.rows,
        "shards": list(summary.shards),
        "fields": list(summary.fields),
        "teachers": list(summary.teachers),
        "bytes": summary.bytes,
        "created": summary.created,
    }


def table(found: list[Summary]) -> list[str]:
    """Summaries in columns, a line each."""
    rows = [("store", "rows", "bytes", "state", "created", "teacher", "fields")]
    for item in found:
        if item.problem:
            rows.append((str(item.path), "-", "-", "UNREADABLE", "-", "-", item.problem))
            continue
        done, total = item.shards
        rows.append(
            (
                str(item.path),
                f"{item.rows:,}",
                "-" if item.bytes is None else format_bytes(item.bytes),
                "complete" if item.complete else f"{done:,} of {total:,} shards",
                item.created[:10],
                ", ".join(item.teachers) or "-",
                " ".join(item.fields),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        printable(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]

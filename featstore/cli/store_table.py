"""Tables of stores for ``featstore list`` and ``featstore delete``."""

from typing import Any

from featstore.maintenance.list_and_delete import Summary
from featstore.text import columns, format_bytes


def as_json(summary: Summary) -> dict[str, Any]:
    """Return a summary as plain JSON values."""
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
    """Return a table of summaries, one line per store."""
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
    return columns(rows, rule=False).splitlines()

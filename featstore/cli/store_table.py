"""Tables of stores for ``featstore list`` and ``featstore delete``."""

from dataclasses import asdict
from typing import Any

from featstore.display.text import columns, format_bytes
from featstore.maintenance.list_and_delete import StoreSummary


def summary_json(summary: StoreSummary) -> dict[str, Any]:
    """Return a summary as plain JSON values."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(summary).items()}
    return {**values, "path": str(summary.path), "complete": summary.complete}


def stores_table(found: list[StoreSummary]) -> list[str]:
    """Return a table of summaries, one line per store."""
    rows = [("store", "rows", "bytes", "state", "created", "teacher", "fields")]
    for item in found:
        if item.problem:
            rows.append((str(item.path), "-", "-", "UNREADABLE", "-", "-", item.problem))
            continue
        done, total = item.shards
        state = "complete" if item.complete else f"{done:,} of {total:,} shards"
        names = ", ".join(item.teachers) or "-", " ".join(item.fields)
        size = format_bytes(item.bytes)
        rows.append((str(item.path), f"{item.rows:,}", size, state, item.created[:10], *names))
    return columns(rows, rule=False).splitlines()

"""``featstore list`` and ``featstore delete``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from featstore.errors import ConfigError
from featstore.lifecycle import Summary, check_deletable, delete_store, find_stores, summarise
from featstore.measure import format_bytes


def list_stores(arguments: argparse.Namespace) -> int:
    """List stores; returns the exit status."""
    found = [summary for folder in arguments.folder for summary in find_stores(folder)]
    if arguments.json:
        print(json.dumps([as_json(summary) for summary in found], indent=2))
    else:
        print("\n".join(_table(found)) if found else "no stores")
    return 1 if any(summary.problem for summary in found) else 0


def delete(arguments: argparse.Namespace) -> int:
    """Delete a store, after a question; returns the exit status."""
    store: Path = arguments.store
    check_deletable(store, force=arguments.force)
    summary = summarise(store)
    if not arguments.yes and not _confirmed(summary):
        print(f"{store}: kept", file=sys.stderr)
        return 1
    delete_store(store, force=arguments.force)
    print(json.dumps({"deleted": as_json(summary)}) if arguments.json else f"{store}: deleted")
    return 0


def _confirmed(summary: Summary) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{summary.path}: not deleted, because nobody can be asked. Say --yes if it shall go."
        )
    print("\n".join(_table([summary])), file=sys.stderr)
    print(f"Delete {summary.path}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


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


def _table(found: list[Summary]) -> list[str]:
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
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]

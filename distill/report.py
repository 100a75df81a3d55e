"""One table over all runs, for people and as files."""

import csv
import io
import statistics
from pathlib import Path
from typing import Any

from distill.runs import write_json
from featstore.atomic import write_bytes

COLUMNS = (
    "method", "seed", "top1", "teacher_probe_top1", "seconds", "steps", "num_labelled", "num_unlabelled", "num_test",
    "peak_memory_mb",
)  # fmt: skip
"""Columns of results.csv."""


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation in percent; no deviation for a single value."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(records: list[dict[str, Any]]) -> str:
    """Method x seeds: mean +- deviation of the test accuracy and mean seconds, next to the teacher's linear probe."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_method.setdefault(record["method"], []).append(record)
    rows = [("method", "runs", "test top-1 %", "seconds per run")]
    for method, group in by_method.items():
        seconds = statistics.fmean(record["seconds"] for record in group)
        rows.append(
            (
                method,
                str(len(group)),
                spread([record["top1"] for record in group]),
                f"{seconds:.1f}",
            )
        )
    probes = {record["seed"]: record["teacher_probe_top1"] for record in records}
    rows.append(("teacher, linear probe", str(len(probes)), spread(list(probes.values())), "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def write(out: Path, records: list[dict[str, Any]]) -> list[Path]:
    """Write results.json and results.csv; returns their paths."""
    write_json(out / "results.json", records)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_bytes(out / "results.csv", text.getvalue().encode())
    return [out / "results.json", out / "results.csv"]

"""``featstore verify``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from featstore import verify as library
from featstore.commands.arguments import positive
from featstore.errors import shorten
from featstore.measure import format_bytes
from featstore.verify import Report

DESCRIPTION = """\
Check that every byte of a store is what was written, and that its parts agree. Nothing is changed. Damage is named by
shard, column, rows and file. extract.py --repair makes damaged shards again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=Path, help="folder of the store")
    parser.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help="look at N random blocks only; takes the same time however large the store is",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument(
        "--workers", type=positive, default=2, help="threads that read (default: 2)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check a store; returns the exit status."""
    quiet = arguments.json or not sys.stderr.isatty()
    unit = " blocks" if arguments.sample else " shards"
    with tqdm(total=1, unit=unit, disable=quiet, file=sys.stderr, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = library.verify(
            arguments.store,
            sample=arguments.sample,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=progress,
        )
    print(json.dumps(as_json(report), indent=2) if arguments.json else "\n".join(lines(report)))
    return 0 if report.sound and report.complete else 1


def as_json(report: Report) -> dict[str, Any]:
    """A report as plain JSON values."""
    return {
        "path": str(report.path),
        "fingerprint": report.fingerprint,
        "sound": report.sound,
        "complete": report.complete,
        "sampled": report.sampled,
        "shards": [report.shards, report.num_shards],
        "missing_shards": report.missing,
        "blocks": report.blocks,
        "bytes": report.bytes,
        "damaged_shards": report.damaged_shards,
        "damages": [
            {
                "kind": item.kind,
                "shard": item.shard,
                "column": item.column,
                "rows": None if item.rows is None else [item.rows.start, item.rows.stop],
                "object": item.object,
                "problem": item.problem,
                "advice": item.advice,
            }
            for item in report.damages
        ],
        "foreign_files": report.foreign,
        "leftovers": report.leftovers,
    }


def lines(report: Report) -> list[str]:
    """A report for people."""
    scope = "a sample of blocks" if report.sampled else "everything"
    found = [
        f"store      {report.path} ({report.rows:,} rows, {report.num_shards:,} shards)",
        f"checked    {scope}: {report.blocks:,} blocks, {format_bytes(report.bytes)}, in {report.shards:,} shards",
    ]
    found += [f"damaged    {damage}" for damage in report.damages]
    if report.missing:
        found.append(
            f"missing    {len(report.missing):,} shards were not extracted yet: {shorten(report.missing)}; extract.py "
            "goes on where it stopped"
        )
    elif not report.marked and report.sound:
        found.append(
            "unmarked   every shard is there, but the store is not marked as complete; run extract.py"
        )
    if report.foreign:
        found.append(
            f"foreign    {len(report.foreign):,} files are not of the store: {shorten(report.foreign)}"
        )
    if report.leftovers:
        found.append(
            f"leftover   {len(report.leftovers):,} files of a killed run: {shorten(report.leftovers)}; the next run "
            "clears them away"
        )
    return [*found, f"verdict    {_verdict(report)}"]


def _verdict(report: Report) -> str:
    if not report.sound:
        shards = report.damaged_shards
        which = f" in {len(shards):,} shards: {shorten(shards, 20)}" if shards else ""
        return f"DAMAGED: {len(report.damages):,} problems{which}"
    state = "complete" if report.complete else "INCOMPLETE"
    if not report.sampled:
        return f"sound, {state}"
    return (
        f"the sample is sound, {state}; were {report.likely_share:.2%} of all blocks damaged, it would have shown with "
        "95 % probability"
    )

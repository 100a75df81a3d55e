"""Arguments, progress bar and report of ``featstore push`` and ``featstore pull``."""

import argparse
import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict

from featstore.cli.arguments import add_client_arguments, names, positive, row_range
from featstore.cli.progress_bar import progress_bar
from featstore.sharing.part import Part
from featstore.sharing.progress import Progress, Report
from featstore.text import count, format_bytes, format_seconds


def add_transfer_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of both commands besides store and URL."""
    parser.add_argument(
        "--fields", type=names, default=[], metavar="A,B", help="only these fields (default: all)"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only rows whose sample id matches, e.g. 'train/*'; may be repeated, any of them is enough; with --rows, "
        "only rows that satisfy both",
    )
    parser.add_argument(
        "--rows", type=row_range, default=slice(None), metavar="A:B", help="only rows A to B - 1"
    )
    parser.add_argument(
        "--jobs", type=positive, default=8, help="files that are transferred at once (default: 8)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="compare both sides, and say how many files and bytes would be transferred; nothing is written",
    )
    add_client_arguments(parser)


def part_of(arguments: argparse.Namespace) -> Part:
    """Return the part of the store that was asked for."""
    return Part(tuple(arguments.fields), tuple(arguments.where), arguments.rows)


def byte_bar(arguments: argparse.Namespace) -> AbstractContextManager[Progress]:
    """Show how many bytes were transferred."""
    # The hub's client would draw a bar for each file; this one counts all of them.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return progress_bar("B", show=not arguments.json, unit_scale=True)


def print_report(arguments: argparse.Namespace, report: Report, where: str) -> None:
    """Print what was done; ``where`` is the store that is there afterwards."""
    if arguments.json:
        print(json.dumps(asdict(report), indent=2))
        return
    size = f"{count(report.files, 'file')}, {format_bytes(report.bytes)}"
    unchanged = f"{count(report.skipped_files, 'file')}, {format_bytes(report.skipped_bytes)}"
    if report.dry_run:
        print(f"dry run    {size} would be transferred")
    else:
        rate = f", {format_bytes(report.bytes / report.seconds)}/s" if report.seconds > 0 else ""
        print(f"moved      {size} in {format_seconds(report.seconds)}{rate}")
    if report.skipped_files:
        print(f"unchanged  {unchanged}")
    for text in report.damaged:
        print(f"damaged    transferred again: {text}")
    for text in report.notes:
        print(f"note       {text}")
    if not report.dry_run:
        print(
            f"{where}: complete, {report.rows:,} rows, {report.files + report.skipped_files:,} files, fingerprint "
            f"{report.fingerprint[:16]}"
        )

"""Arguments, progress bar and report of ``featstore push`` and ``featstore pull``."""

import argparse
import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict

from featstore.cli.arguments import names, positive, row_range
from featstore.cli.progress_bar import progress_bar
from featstore.sharing.part import Part
from featstore.sharing.progress import Progress, Report
from featstore.text import format_bytes, format_seconds


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
        help="only rows whose sample id matches, e.g. 'train/*'; may be repeated: one match is enough",
    )
    parser.add_argument(
        "--rows", type=row_range, default=slice(None), metavar="A:B", help="only rows A to B - 1"
    )
    parser.add_argument(
        "--jobs", type=positive, default=8, help="files transferred at the same time (default: 8)"
    )
    parser.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for the client, e.g. endpoint=https://minio.example.org or skip_signature=true; may be repeated",
    )


def part_of(arguments: argparse.Namespace) -> Part:
    """Return the part of the store that was asked for."""
    return Part(tuple(arguments.fields), tuple(arguments.where), arguments.rows)


def byte_bar(arguments: argparse.Namespace) -> AbstractContextManager[Progress]:
    """Show how many bytes were transferred."""
    # The hub's client would draw a bar for each file; this one counts all of them.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return progress_bar("B", show=not arguments.json, unit_scale=True)


def print_report(arguments: argparse.Namespace, report: Report, where: str) -> None:
    """Print what was done; ``where`` is the resulting store."""
    if arguments.json:
        print(json.dumps(asdict(report), indent=2))
        return
    rate = f", {format_bytes(report.bytes / report.seconds)}/s" if report.seconds > 0 else ""
    print(
        f"moved      {report.files:,} files, {format_bytes(report.bytes)} in {format_seconds(report.seconds)}{rate}"
    )
    if report.skipped_files:
        print(
            f"there      {report.skipped_files:,} files, {format_bytes(report.skipped_bytes)}, unchanged"
        )
    for text in report.damaged:
        print(f"damaged    sent again: {text}")
    for text in report.notes:
        print(f"note       {text}")
    print(f"{where}: complete, {report.rows:,} rows, fingerprint {report.fingerprint[:16]}")


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(text)
    return key, value

"""Arguments and run of ``featstore push`` and ``featstore pull``."""

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from featstore.cli import arguments as cli
from featstore.display.text import count, format_bytes, format_seconds
from featstore.sharing.part import Part
from featstore.sharing.progress import TransferReport

TRANSFER: cli.Arguments = {
    "--fields": cli.FIELDS,
    "--where": cli.WHERE,
    "--rows": cli.ROWS,
    "--jobs": cli.value("files that are transferred at once (default: 8)", cli.positive, default=8),
    "--dry-run": cli.flag(
        "compare both sides, and show how many files and bytes would be transferred; nothing is written"
    ),
    **cli.CLIENT,
}


def asked_part(arguments: argparse.Namespace) -> Part:
    """Return the part of the store that was asked for."""
    return Part(tuple(arguments.fields or ()), tuple(arguments.where), arguments.rows)


def transfer(
    arguments: argparse.Namespace,
    call: Callable[..., TransferReport],
    source: Any,
    target: Any,
    part: Part,
    **options: Any,
) -> TransferReport:
    """Push or pull, with a progress bar of bytes."""
    # The hub's client would draw a bar for each file; this one counts all of them.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    options |= cli.picked(arguments, "jobs", "replace", "dry_run")
    with cli.bar(arguments, "B", unit_scale=True) as progress:
        return call(
            source, target, part=part, **options, **cli.client_of(arguments), progress=progress
        )


def show_report(arguments: argparse.Namespace, report: TransferReport, where: str) -> int:
    """Print what was done; ``where`` is the store that is there afterwards."""
    size = f"{count(report.files, 'file')}, {format_bytes(report.bytes)}"
    rate = f", {format_bytes(report.bytes / report.seconds)}/s" if report.seconds > 0 else ""
    lines = [
        f"dry run    {size} would be transferred"
        if report.dry_run
        else f"moved      {size} in {format_seconds(report.seconds)}{rate}"
    ]
    if report.skipped_files:
        unchanged = format_bytes(report.skipped_bytes)
        lines.append(f"unchanged  {count(report.skipped_files, 'file')}, {unchanged}")
    lines += [f"damaged    transferred again: {text}" for text in report.damaged]
    lines += [f"note       {text}" for text in report.notes]
    if not report.dry_run:
        lines.append(
            f"{where}: complete, {report.rows:,} rows, {report.files + report.skipped_files:,} files, fingerprint "
            f"{report.fingerprint[:16]}"
        )
    return cli.show(arguments, asdict(report), lines)

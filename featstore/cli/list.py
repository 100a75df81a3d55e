"""``featstore list``."""

import argparse
import json
from pathlib import Path

from featstore.cli.store_table import as_json, table
from featstore.maintenance.list_and_delete import find_stores

DESCRIPTION = "List the stores below some folders, without reading shards. Exit status 1 if one cannot be read."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "folder",
        nargs="*",
        type=Path,
        default=[Path()],
        help="folders to search (default: the working directory)",
    )


def run(arguments: argparse.Namespace) -> int:
    """List stores; returns the exit status."""
    found = [summary for folder in arguments.folder for summary in find_stores(folder)]
    if arguments.json:
        print(json.dumps([as_json(summary) for summary in found], indent=2))
    else:
        print("\n".join(table(found)) if found else "no stores")
    return 1 if any(summary.problem for summary in found) else 0

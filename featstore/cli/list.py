"""``featstore list``."""

import argparse
import json
from pathlib import Path
from typing import Any

from featstore.cli.arguments import add_client_arguments, retry_of, store_address
from featstore.cli.store_table import as_json, table
from featstore.maintenance.list_and_delete import find_stores
from featstore.sharing.published_stores import find_published

DESCRIPTION = "List the stores below folders or URLs, without reading shards. Exit status 1 if one cannot be read."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "folder", nargs="*", type=store_address, default=[Path()], help="folder or URL (default: .)"
    )
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """List stores; returns the exit status."""
    client: dict[str, Any] = {"retry": retry_of(arguments), "options": dict(arguments.option)}
    found = [
        summary
        for folder in arguments.folder
        for summary in (
            find_stores(folder) if isinstance(folder, Path) else find_published(folder, **client)
        )
    ]
    if arguments.json:
        print(json.dumps([as_json(summary) for summary in found], indent=2))
    else:
        print("\n".join(table(found)) if found else "no stores")
    return 1 if any(summary.problem for summary in found) else 0

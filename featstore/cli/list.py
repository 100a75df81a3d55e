"""``featstore list``."""

import argparse
from pathlib import Path

from featstore.cli.arguments import CLIENT, client_of, show, store_address, value
from featstore.cli.store_table import stores_table, summary_json
from featstore.maintenance.list_and_delete import find_stores
from featstore.sharing.published_stores import find_published

DESCRIPTION = "List the stores below folders or URLs, without reading shards. Exit status 1 if one cannot be read."

ARGUMENTS = {
    "folder": value("folder or URL (default: .)", store_address, nargs="*", default=[Path()]),
    **CLIENT,
}


def run(arguments: argparse.Namespace) -> int:
    """List stores."""
    found = [
        summary
        for folder in arguments.folder
        for summary in (
            find_stores(folder)
            if isinstance(folder, Path)
            else find_published(folder, **client_of(arguments))
        )
    ]
    show(
        arguments,
        [summary_json(item) for item in found],
        stores_table(found) if found else ["no stores"],
    )
    return 1 if any(summary.problem for summary in found) else 0

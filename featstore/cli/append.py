"""``featstore append``."""

import argparse
import json

from featstore.cli.arguments import store_folder
from featstore.cli.progress_bar import progress_bar
from featstore.derive.append import append

DESCRIPTION = """\
Append the rows of a store of new images to a finished store of the same teachers, views and fields. Old rows keep
number, bytes and values; the manifest records the earlier version. Processes that have the store open keep reading the
old version. Run the same command again to resume. To extract new images directly into a store: featstore
extract --append true.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_folder, help="folder of the store that grows")
    parser.add_argument(
        "new", type=store_folder, help="folder of the store of new images; it is kept"
    )
    parser.add_argument(
        "--duplicates",
        choices=["refuse", "skip", "keep"],
        default="refuse",
        help="images that the store has under another id (default: refuse)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Append rows to a store; returns the exit status."""
    with progress_bar(" shards", show=not arguments.json) as progress:
        made = append(
            arguments.store, arguments.new, duplicates=arguments.duplicates, progress=progress
        )
    manifest = made.manifest
    if arguments.json:
        result = {
            "path": str(arguments.store),
            "version": manifest.version,
            "rows": manifest.num_rows,
            "added": made.rows,
            "notes": made.notes,
            "fingerprint": manifest.fingerprint,
        }
        print(json.dumps(result, indent=2))
        return 0
    for note in made.notes:
        print(f"note         {note}")
    print(
        f"{arguments.store}: version {manifest.version}, {manifest.num_rows:,} rows, {made.rows:,} of them added"
        if made.rows
        else f"{arguments.store}: nothing to add; version {manifest.version}, {manifest.num_rows:,} rows"
    )
    return 0

"""``featstore delete``."""

import argparse
import json
import sys
from pathlib import Path

from featstore.cli.store_table import as_json, table
from featstore.errors import ConfigError
from featstore.maintenance.list_and_delete import Summary, check_deletable, delete_store, summarise

DESCRIPTION = "Delete a store after asking. Refuses folders that are not stores, and stores that are being written."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=Path, help="folder of the store")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument(
        "--force",
        action="store_true",
        help="also delete if the manifest cannot be read, or the folder holds other files",
    )


def run(arguments: argparse.Namespace) -> int:
    """Delete a store after asking; returns the exit status."""
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
    print("\n".join(table([summary])), file=sys.stderr)
    print(f"Delete {summary.path}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")

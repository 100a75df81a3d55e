"""``featstore delete``."""

import argparse
import json
import sys
from pathlib import Path

from featstore.cli.arguments import CLIENT, STORE_OR_URL, client_of, flag, value
from featstore.cli.store_table import stores_table, summary_json
from featstore.errors import ConfigError
from featstore.maintenance.list_and_delete import (
    StoreSummary,
    check_deletable,
    delete_store,
    interrupted_deletions,
    summarise,
)
from featstore.sharing.published_stores import delete_published, summarise_published

DESCRIPTION = """\
Delete a store in a folder or at a URL after asking. Refuses folders that are not stores, and stores that are being
written.

  featstore delete STORE
  featstore delete s3://bucket/prefix --retract "images withdrawn by their owners"
      leaves a README.md that names the fingerprint, the date and the reason
"""

ARGUMENTS = {
    "store": STORE_OR_URL,
    "--yes": flag("do not ask for confirmation"),
    "--force": flag("also delete if the manifest cannot be read, or the folder holds other files"),
    "--retract": value(
        "at a URL: leave a README.md with this reason", metavar="REASON", default=""
    ),
    **CLIENT,
}


def run(arguments: argparse.Namespace) -> int:
    """Delete a store after asking."""
    store: str | Path = arguments.store
    client = client_of(arguments)
    if isinstance(store, str):
        summary = summarise_published(store, **client)
    elif arguments.retract:
        raise ConfigError(f"{store}: --retract is for a store at a URL.")
    elif interrupted_deletions(store.absolute()) and not store.exists():
        summary = StoreSummary(path=store, problem="an earlier deletion was interrupted")
    else:
        check_deletable(store, force=arguments.force)
        summary = summarise(store)
    if not arguments.yes and not _confirmed(summary):
        print(f"{store}: kept", file=sys.stderr)
        return 1
    if isinstance(store, str):
        delete_published(store, force=arguments.force, reason=arguments.retract, **client)
    else:
        delete_store(store, force=arguments.force)
    print(json.dumps({"deleted": summary_json(summary)}) if arguments.json else f"{store}: deleted")
    return 0


def _confirmed(summary: StoreSummary) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(f"{summary.path}: not deleted, as no terminal can answer. Use --yes.")
    print("\n".join(stores_table([summary])), file=sys.stderr)
    print(f"Delete {summary.path}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")

"""``featstore pull``."""

import argparse

from featstore.cli.arguments import flag, store_folder, value
from featstore.cli.transfer_options import TRANSFER, asked_part, show_report, transfer
from featstore.sharing.pull import pull

DESCRIPTION = """\
Download a store, or a part of one. Every file is compared with the store's ledger before it gets its name, and the
folder appears when all have arrived. An interrupted pull resumes with the same command, also inside a file; on a
complete copy it finds and repairs damaged files.

  featstore pull https://example.org/stores/imagenet STORE
  featstore pull s3://bucket/prefix STORE --fields cls --where 'train/*'
  featstore pull hf://datasets/team/name@v1.0 STORE
"""

ARGUMENTS = {
    "url": value("URL of the folder that holds the store's manifest.json"),
    "store": value("destination folder", store_folder),
    **TRANSFER,
    "--replace": flag(
        "replace another store, or another version; unchanged files are not downloaded again"
    ),
}


def run(arguments: argparse.Namespace) -> int:
    """Pull a store."""
    report = transfer(arguments, pull, arguments.url, arguments.store, asked_part(arguments))
    return show_report(arguments, report, str(arguments.store))

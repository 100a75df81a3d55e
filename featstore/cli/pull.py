"""``featstore pull``."""

import argparse

from featstore.cli.arguments import retry_of, store_folder
from featstore.cli.transfer_options import add_transfer_arguments, byte_bar, part_of, print_report
from featstore.sharing.pull import pull

DESCRIPTION = """\
Download a store, or a part of one. Every file is compared with the store's ledger before it gets its name, and the
folder appears when all have arrived. An interrupted pull resumes with the same command, also inside a file; on a
complete copy it finds and mends damaged files.

  featstore pull https://example.org/stores/imagenet STORE
  featstore pull s3://bucket/prefix STORE --fields cls --where 'train/*'
  featstore pull hf://datasets/team/name@v1.0 STORE
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("url", help="URL of the folder that holds the store's manifest.json")
    parser.add_argument("store", type=store_folder, help="destination folder")
    add_transfer_arguments(parser)
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace another store, or another version; unchanged files are not downloaded again",
    )


def run(arguments: argparse.Namespace) -> int:
    """Pull a store; returns the exit status."""
    with byte_bar(arguments) as progress:
        report = pull(
            arguments.url,
            arguments.store,
            part=part_of(arguments),
            jobs=arguments.jobs,
            replace=arguments.replace,
            dry_run=arguments.dry_run,
            retry=retry_of(arguments),
            options=dict(arguments.option),
            progress=progress,
        )
    print_report(arguments, report, str(arguments.store))
    return 0

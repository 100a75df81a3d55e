"""``featstore pull``."""

import argparse

from featstore.cli.arguments import store_folder
from featstore.cli.transfer_options import add_transfer_arguments, byte_bar, part_of, print_report
from featstore.sharing.pull import pull

DESCRIPTION = """\
Download a store, or a part of one. Every byte is compared with the store's ledger, and the destination folder
appears when all files are complete. Run the same command again to resume; on an existing copy it finds and repairs
damage.

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
        help="overwrite another store or another version; unchanged files are not downloaded again",
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
            options=dict(arguments.option),
            progress=progress,
        )
    print_report(arguments, report, str(arguments.store))
    return 0

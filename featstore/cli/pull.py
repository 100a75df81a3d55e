"""``featstore pull``."""

import argparse

from featstore.cli.arguments import store_folder
from featstore.cli.transfer_options import add_transfer_arguments, byte_bar, part_of, print_report
from featstore.sharing.pull import pull

DESCRIPTION = """\
Download a store, or a part of one. Every byte is compared with the store's ledger before it gets its name, and the
folder appears when everything is there. A run that was stopped goes on with the same command; on a copy that is there
already it finds and mends what is damaged.

  featstore pull https://example.org/stores/imagenet STORE
  featstore pull s3://bucket/prefix STORE --fields cls --where 'train/*'
  featstore pull hf://datasets/team/name@v1.0 STORE
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("url", help="of the folder with the store's manifest.json")
    parser.add_argument("store", type=store_folder, help="folder that it becomes")
    add_transfer_arguments(parser)
    parser.add_argument(
        "--replace",
        action="store_true",
        help="also where another store, or another version, is; what both have does not travel",
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

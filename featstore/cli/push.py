"""``featstore push``."""

import argparse

from featstore.cli.arguments import store_folder
from featstore.cli.transfer_options import add_transfer_arguments, byte_bar, part_of, print_report
from featstore.sharing.push import push

DESCRIPTION = """\
Upload a store to a folder or bucket; readers see it only when it is complete. Unchanged files are skipped; uploaded
files are read back and compared. Run the same command again to resume.

  featstore push STORE s3://bucket/prefix                 AWS_* variables, or --option endpoint=... region=...
  featstore push STORE gs://bucket/prefix
  featstore push STORE sftp://user@host/data/store        keys as ssh has them
  featstore push STORE hf://datasets/team/name            after `hf auth login`
  featstore push STORE /mnt/share/store
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_folder, help="folder of the store")
    parser.add_argument("url", help="destination, a folder of its own")
    add_transfer_arguments(parser)
    parser.add_argument(
        "--no-read-back",
        action="store_true",
        help="do not read back what was uploaded; half the traffic",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="overwrite another store or another version; neither can be read in the meantime",
    )


def run(arguments: argparse.Namespace) -> int:
    """Push a store; returns the exit status."""
    with byte_bar(arguments) as progress:
        report = push(
            arguments.store,
            arguments.url,
            part=part_of(arguments),
            jobs=arguments.jobs,
            read_back=not arguments.no_read_back,
            replace=arguments.replace,
            options=dict(arguments.option),
            progress=progress,
        )
    print_report(arguments, report, report.url)
    return 0

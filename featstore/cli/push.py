"""``featstore push``."""

import argparse

from featstore.cli.arguments import names, retry_of, store_folder
from featstore.cli.transfer_options import add_transfer_arguments, byte_bar, part_of, print_report
from featstore.sharing.push import push

DESCRIPTION = """\
Publish a store: upload it to a folder or bucket, where readers find it only when it is complete. Unchanged files are
not sent again, and uploads are read back and compared. An interrupted push resumes with the same command; pushed again,
a store that is there is read and compared, and damaged files are sent anew.

  featstore push STORE s3://bucket/prefix                 AWS_* variables, or --option endpoint=... region=...
  featstore push STORE gs://bucket/prefix                 or az://container/prefix
  featstore push STORE sftp://user@host/data/store        keys as ssh has them
  featstore push STORE hf://datasets/team/name            after `hf auth login`
  featstore push STORE /mnt/share/store
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_folder, help="folder of the store")
    parser.add_argument("url", help="destination: an empty folder, or one with this store")
    add_transfer_arguments(parser)
    parser.add_argument(
        "--without",
        type=names,
        default=[],
        metavar="A,B",
        help="all fields but these, e.g. pictures where the licence of the images forbids passing them on",
    )
    parser.add_argument(
        "--no-read-back",
        action="store_true",
        help="compare only the sizes of files at the destination, and trust uploads; half the bytes",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace another store, or another version; neither can be read until the push is complete",
    )


def run(arguments: argparse.Namespace) -> int:
    """Push a store; returns the exit status."""
    with byte_bar(arguments) as progress:
        report = push(
            arguments.store,
            arguments.url,
            part=part_of(arguments).without(arguments.without, arguments.store),
            jobs=arguments.jobs,
            read_back=not arguments.no_read_back,
            replace=arguments.replace,
            dry_run=arguments.dry_run,
            retry=retry_of(arguments),
            options=dict(arguments.option),
            progress=progress,
        )
    print_report(arguments, report, report.url)
    return 0

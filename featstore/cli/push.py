"""``featstore push``."""

import argparse

from featstore.cli.arguments import STORE, flag, names, value
from featstore.cli.transfer_options import TRANSFER, asked_part, show_report, transfer
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

ARGUMENTS = {
    "store": STORE,
    "url": value("destination: an empty folder, or one with this store"),
    **TRANSFER,
    "--without": value(
        "all fields but these, e.g. pictures where the licence of the images forbids passing them on",
        names,
        default=[],
        metavar="A,B",
    ),
    "--no-read-back": flag(
        "compare only the sizes of files at the destination, and trust uploads; half the bytes"
    ),
    "--replace": flag(
        "replace another store, or another version; neither can be read until the push is complete"
    ),
}


def run(arguments: argparse.Namespace) -> int:
    """Push a store."""
    read_back = not arguments.no_read_back
    part = asked_part(arguments).without(arguments.without, arguments.store)
    report = transfer(arguments, push, arguments.store, arguments.url, part, read_back=read_back)
    return show_report(arguments, report, report.url)

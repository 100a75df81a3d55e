"""The bar of commands that write a store shard by shard."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from featstore.writing.fill import Progress


@contextmanager
def shard_bar(arguments: argparse.Namespace) -> Iterator[Progress]:
    """Show how many shards are written, unless nobody looks or JSON was asked for."""
    quiet = arguments.json or not sys.stderr.isatty()
    with tqdm(total=1, unit=" shards", disable=quiet, file=sys.stderr, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress

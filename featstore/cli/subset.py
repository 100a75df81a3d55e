"""``featstore subset``."""

import argparse
import json
from pathlib import Path

from featstore.cli.arguments import names, new_folder, positive, row_range, store_folder
from featstore.cli.progress_bar import progress_bar
from featstore.derive.subset import choose, subset
from featstore.errors import shorten
from featstore.format.ids import read_ids
from featstore.reading.store import FeatureStore

DESCRIPTION = """\
Write a part of a store as a new store: some fields, some rows, or both. Values, ids, labels and the reasons of unusable
images do not change. Run the same command again to resume.

  featstore subset STORE OUT --fields cls
  featstore subset STORE OUT --where 'train/*' --where 'extra/*'
  featstore subset STORE OUT --ids ids.txt                      # of featstore select
  featstore subset STORE OUT --where 'train/*' --labelled-per-class 4 --seed 0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_folder, help="folder of the store")
    parser.add_argument("out", type=new_folder, help="folder of the new store")
    parser.add_argument("--fields", type=names, metavar="A,B", help="fields to take (default: all)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PATTERN",
        help="take rows whose sample id matches, e.g. 'train/*'; may be repeated: one match is enough",
    )
    parser.add_argument(
        "--ids", type=Path, metavar="FILE", help="take the rows of these ids, one per line"
    )
    parser.add_argument(
        "--rows", type=row_range, default=slice(None), metavar="A:B", help="take rows A to B - 1"
    )
    parser.add_argument(
        "--labelled-per-class",
        type=positive,
        default=0,
        metavar="N",
        help="take only N valid, different images of each class; chosen by content and --seed",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that choice (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Write a part of a store; returns the exit status."""
    rows = choose(
        FeatureStore.open(arguments.store),
        where=arguments.where,
        ids=None if arguments.ids is None else read_ids(arguments.ids),
        rows=arguments.rows,
        labelled_per_class=arguments.labelled_per_class,
        seed=arguments.seed,
    )
    with progress_bar(" shards", show=not arguments.json) as progress:
        manifest = subset(
            arguments.store,
            arguments.out,
            rows=rows,
            fields=arguments.fields,
            note={"subset_of": _choice(arguments)},
            progress=progress,
        )
    if arguments.json:
        result = {
            "path": str(arguments.out),
            "rows": manifest.num_rows,
            "fields": sorted(manifest.fields),
            "fingerprint": manifest.fingerprint,
        }
        print(json.dumps(result, indent=2))
    else:
        print(
            f"{arguments.out}: complete, {manifest.num_rows:,} rows of {shorten(sorted(manifest.fields), 20)}"
        )
    return 0


def _choice(arguments: argparse.Namespace) -> str:
    """Return the options as text, for the manifest."""
    parts = [f"--where {pattern!r}" for pattern in arguments.where]
    if arguments.ids:
        parts.append(f"--ids {arguments.ids.name}")
    if arguments.rows != slice(None):
        ends = (arguments.rows.start, arguments.rows.stop)
        parts.append("--rows " + ":".join("" if end is None else str(end) for end in ends))
    if arguments.labelled_per_class:
        parts.append(f"--labelled-per-class {arguments.labelled_per_class} --seed {arguments.seed}")
    if arguments.fields:
        parts.append(f"--fields {','.join(arguments.fields)}")
    return " ".join(parts) or "all"

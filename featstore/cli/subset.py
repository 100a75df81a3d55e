"""``featstore subset``."""

import argparse
from pathlib import Path

from featstore.cli import arguments as cli
from featstore.derive.subset import choose_rows, subset
from featstore.errors import shorten
from featstore.format.ids import read_ids
from featstore.reading.store import FeatureStore

DESCRIPTION = """\
Write a part of a store as a new store: some fields, some rows, or both. Values, ids, labels and the reasons of unusable
images do not change. Run the same command again to resume.

  featstore subset STORE OUT --fields cls
  featstore subset STORE OUT --where 'train/*' --where 'extra/*'
  featstore subset STORE OUT --where 'confidence > .6'          # a field of one number; no other field is read
  featstore subset STORE OUT --ids ids.txt                      # of featstore select
  featstore subset STORE OUT --where 'train/*' --labelled-per-class 4 --seed 0
"""

ARGUMENTS = {
    "store": cli.STORE,
    "out": cli.OUT,
    "--fields": cli.FIELDS,
    "--where": cli.WHERE,
    "--ids": cli.value("only the rows of these ids, one per line", Path, metavar="FILE"),
    "--rows": cli.ROWS,
    "--labelled-per-class": cli.value(
        "only N valid, different images of each class; chosen by content and --seed",
        cli.positive,
        default=0,
        metavar="N",
    ),
    "--seed": cli.value("seed of that choice (default: 0)", int, default=0),
}


def run(arguments: argparse.Namespace) -> int:
    """Write a part of a store."""
    rows = choose_rows(
        FeatureStore.open(arguments.store),
        ids=None if arguments.ids is None else read_ids(arguments.ids),
        **cli.picked(arguments, "where", "rows", "labelled_per_class", "seed"),
    )
    out, note = arguments.out, {"subset_of": _choice(arguments)}
    with cli.bar(arguments, " shards") as progress:
        manifest = subset(
            arguments.store, out, rows=rows, fields=arguments.fields, note=note, progress=progress
        )
    fields = shorten(sorted(manifest.fields), 20)
    line = f"{out}: complete, {manifest.num_rows:,} rows of {fields}"
    return cli.show(arguments, cli.made(out, manifest), [line])


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

"""``featstore select``."""

import argparse
import shlex
from pathlib import Path

from featstore.cli import arguments as cli
from featstore.reading.store import FeatureStore
from featstore.selection.choose import select
from featstore.selection.near_duplicates import THRESHOLD

DESCRIPTION = """\
Choose images by their stored features and write their ids to a file, one per line, for phase two
(--data.unlabelled '["@ids.txt"]') or for a store of these rows (featstore subset STORE OUT --ids ids.txt).
Several choices are made one after another, in the order of the list of options below.

  featstore select STORE ids.txt --without-duplicates
  featstore select STORE ids.txt --like labelled --count 5000       # nearest to the images that have labels
  featstore select STORE ids.txt --novel stores/old                 # unlike everything in another store
  featstore select STORE ids.txt --diverse 10000 --page chosen.html
"""

ARGUMENTS = {
    "store": cli.STORE_OR_URL,
    "out": cli.value("file for the ids", Path),
    "--where": {**cli.WHERE, "help": f"candidates: {cli.WHERE['help']} (default: all valid rows)"},
    "--without-duplicates": cli.flag(
        "of equal files and near duplicates, take the first; compares all pairs"
    ),
    "--novel": cli.value(
        "leave out rows that are near duplicates of a row of another store", metavar="STORE"
    ),
    "--like": cli.value(
        "take the --count rows nearest to these: 'labelled' (rows with a label), a pattern over sample ids, or another "
        "store of the same teacher; each of these rows gets its nearest in turn",
        metavar="ROWS",
    ),
    "--count": cli.value("rows for --like; without it, the most novel of --novel", cli.positive),
    "--diverse": cli.value(
        "take N rows, equally many of each cluster of the features (k-means)",
        cli.positive,
        metavar="N",
    ),
    "--field": cli.value("field to compare (default: cls, or the shortest vector)"),
    "--threshold": cli.value(
        f"cosine from which two images are near duplicates (default: {THRESHOLD})",
        float,
        default=THRESHOLD,
    ),
    "--seed": cli.value("seed of the clusters (default: 0)", int, default=0),
    "--page": cli.value("also write a page of what was taken and what not", Path, metavar="HTML"),
    "--images": cli.value("folder of the images, to show them on the page", Path, metavar="FOLDER"),
}

CHOICE = (
    "like",
    "count",
    "diverse",
    "without_duplicates",
    "novel",
    "where",
    "field",
    "threshold",
    "seed",
)


def run(arguments: argparse.Namespace) -> int:
    """Choose images."""
    store, options = FeatureStore.open(arguments.store), cli.picked(arguments, *CHOICE)
    with cli.bar(arguments, " products", unit_scale=True) as progress:
        found = select(store, arguments.out, **options, progress=progress)
    if arguments.page:
        from featstore.card.selection_page import write_page

        write_page(arguments.page, store, found, asked=_asked(arguments), images=arguments.images)
    steps = [
        {"step": step.name, "taken": len(step.taken), "left": len(step.left)}
        for step in found.steps
    ]
    values = {
        **{"path": str(arguments.out), "rows": len(found.rows), "field": found.field},
        **{"steps": steps, "notes": found.notes},
    }
    lines = [f"note         {note}" for note in found.notes]
    lines += [
        f"step         {step['step']}: {step['taken']:,} taken, {step['left']:,} left"
        for step in steps
    ]
    lines.append(f"{arguments.out}: {len(found.rows):,} ids, by {found.field}")
    return cli.show(arguments, values, lines)


def _asked(arguments: argparse.Namespace) -> str:
    """The command, for the page."""
    parts = ["featstore select", shlex.quote(str(arguments.store)), shlex.quote(str(arguments.out))]
    for name in ("novel", "like", "count", "diverse"):
        value = getattr(arguments, name)
        if value is not None:
            parts.append(f"--{name} {shlex.quote(str(value))}")
    parts += [f"--where {shlex.quote(pattern)}" for pattern in arguments.where]
    return " ".join([*parts, *["--without-duplicates"] * arguments.without_duplicates])

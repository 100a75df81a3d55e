"""``featstore select``."""

import argparse
import json
import shlex
from pathlib import Path

from featstore.cli.arguments import positive, store_address
from featstore.cli.progress_bar import progress_bar
from featstore.duplicates.near import THRESHOLD
from featstore.reading.store import FeatureStore
from featstore.selection.choose import select

DESCRIPTION = """\
Choose images by their stored features and write their ids to a file, one per line, for phase two
(--data.unlabelled '["@ids.txt"]') or for a store of these rows (featstore subset STORE OUT --ids ids.txt).
Several choices are made one after another, in the order of the list of options below.

  featstore select STORE ids.txt --without-duplicates
  featstore select STORE ids.txt --like labelled --count 5000       # nearest to the images that have labels
  featstore select STORE ids.txt --novel stores/old                 # unlike everything in another store
  featstore select STORE ids.txt --diverse 10000 --page chosen.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_address, help="folder or URL of the store")
    parser.add_argument("out", type=Path, help="file for the ids")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PATTERN",
        help="candidates: rows whose sample id matches, e.g. 'train/*'; may be repeated (default: all valid rows)",
    )
    parser.add_argument(
        "--without-duplicates",
        action="store_true",
        help="of equal files and near duplicates, take the first; compares all pairs",
    )
    parser.add_argument(
        "--novel",
        metavar="STORE",
        help="leave out rows that are near duplicates of a row of another store",
    )
    parser.add_argument(
        "--like",
        metavar="ROWS",
        help="take the --count rows nearest to these: 'labelled' (rows with a label), a pattern over sample ids, or "
        "another store of the same teacher; each of these rows gets its nearest in turn",
    )
    parser.add_argument(
        "--count", type=positive, help="rows for --like; without it, the most novel of --novel"
    )
    parser.add_argument(
        "--diverse",
        type=positive,
        metavar="N",
        help="take N rows, equally many of each cluster of the features (k-means)",
    )
    parser.add_argument("--field", help="field to compare (default: cls, or the shortest vector)")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"cosine from which two images are near duplicates (default: {THRESHOLD})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the clusters (default: 0)")
    parser.add_argument(
        "--page", type=Path, metavar="HTML", help="also write a page of what was taken and what not"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of the images, to show them on the page",
    )


def run(arguments: argparse.Namespace) -> int:
    """Choose images; returns the exit status."""
    store = FeatureStore.open(arguments.store)
    with progress_bar(" products", show=not arguments.json, unit_scale=True) as progress:
        found = select(
            store,
            arguments.out,
            like=arguments.like,
            count=arguments.count,
            diverse=arguments.diverse,
            without_duplicates=arguments.without_duplicates,
            novel=arguments.novel,
            where=arguments.where,
            field=arguments.field,
            threshold=arguments.threshold,
            seed=arguments.seed,
            progress=progress,
        )
    if arguments.page:
        from featstore.selection.page import write_page

        write_page(arguments.page, store, found, asked=_asked(arguments), images=arguments.images)
    steps = [
        {"step": step.name, "taken": len(step.taken), "left": len(step.left)}
        for step in found.steps
    ]
    if arguments.json:
        result = {
            "path": str(arguments.out),
            "rows": len(found.rows),
            "field": found.field,
            "steps": steps,
            "notes": found.notes,
        }
        print(json.dumps(result, indent=2))
        return 0
    for note in found.notes:
        print(f"note         {note}")
    for step in steps:
        print(f"step         {step['step']}: {step['taken']:,} taken, {step['left']:,} left")
    print(f"{arguments.out}: {len(found.rows):,} ids, by {found.field}")
    return 0


def _asked(arguments: argparse.Namespace) -> str:
    """The command, for the page."""
    parts = ["featstore select", shlex.quote(str(arguments.store)), shlex.quote(str(arguments.out))]
    for name in ("novel", "like", "count", "diverse"):
        value = getattr(arguments, name)
        if value is not None:
            parts.append(f"--{name} {shlex.quote(str(value))}")
    parts += [f"--where {shlex.quote(pattern)}" for pattern in arguments.where]
    return " ".join([*parts, *["--without-duplicates"] * arguments.without_duplicates])

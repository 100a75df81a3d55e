"""``featstore merge``."""

import argparse
import json
from pathlib import Path

from featstore.cli.arguments import names
from featstore.cli.progress_bar import progress_bar
from featstore.derive.merge import Merged, merge
from featstore.errors import ConfigError

DESCRIPTION = """\
Write several stores as one. What that means follows from them, or from --as:

  rows      made alike (same teachers, views, fields) from other images: all rows, one store's behind another's
  teachers  other teachers or fields, the same images and views: fields side by side. Images are matched by content, so
            files may be in another order or renamed. Ids and order are the first store's

A run that was stopped goes on with the same command.

  featstore merge A B OUT
  featstore merge DINO CLIP OUT --names dino,clip
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", nargs="+", type=Path, help="folders of two or more stores")
    parser.add_argument("out", type=Path, help="folder of the new store")
    parser.add_argument(
        "--as", dest="kind", choices=["rows", "teachers"], help="what is meant (default: see above)"
    )
    parser.add_argument(
        "--names",
        type=names,
        default=[],
        metavar="A,B",
        help="one for each store; teachers: put before the names of its fields, A_cls; rows: before its ids, A/ID",
    )
    parser.add_argument(
        "--duplicates",
        choices=["refuse", "skip", "keep"],
        default="refuse",
        help="rows: images that a store before has under another id (default: refuse)",
    )
    parser.add_argument(
        "--missing",
        choices=["refuse", "drop", "invalid"],
        default="refuse",
        help="teachers: images that are not in every store; invalid keeps them, without features (default: refuse)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write several stores as one; returns the exit status."""
    if arguments.kind == "rows" and arguments.missing != "refuse":
        raise ConfigError(
            "--missing is for --as teachers: rows that stand behind each other lack nothing."
        )
    if arguments.kind == "teachers" and arguments.duplicates != "refuse":
        raise ConfigError(
            "--duplicates is for --as rows: of several teachers, the same images are wanted."
        )
    with progress_bar(" shards", show=not arguments.json) as progress:
        made = merge(
            arguments.store,
            arguments.out,
            kind=arguments.kind,
            duplicates=arguments.duplicates,
            missing=arguments.missing,
            names=arguments.names,
            progress=progress,
        )
    print(
        _as_json(arguments.out, made) if arguments.json else "\n".join(_lines(arguments.out, made))
    )
    return 0


def _as_json(out: Path, made: Merged) -> str:
    manifest = made.manifest
    return json.dumps(
        {
            "path": str(out),
            "kind": made.kind,
            "rows": manifest.num_rows,
            "fields": sorted(manifest.fields),
            "notes": made.notes,
            "fingerprint": manifest.fingerprint,
        },
        indent=2,
    )


def _lines(out: Path, made: Merged) -> list[str]:
    how = {"rows": "rows behind each other", "teachers": "fields side by side"}[made.kind]
    fields = ", ".join(sorted(made.manifest.fields))
    return [
        f"merged       {how}",
        *(f"note         {note}" for note in made.notes),
        f"{out}: complete, {made.manifest.num_rows:,} rows of {fields}",
    ]

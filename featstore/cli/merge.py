"""``featstore merge``."""

import argparse
import json
from pathlib import Path

from featstore.cli.arguments import names, new_folder, store_folder
from featstore.cli.progress_bar import progress_bar
from featstore.derive.merge import Merged, merge
from featstore.errors import ConfigError

DESCRIPTION = """\
Write several stores as one. By default the kind follows from the stores; --as sets it:

  rows      other images, the same teachers, views and fields: rows are appended
  teachers  other teachers or fields, same images and views: fields side by side. Images are matched by content, so
            files may be in another order or renamed. Ids and order are the first store's

Run the same command again to resume.

  featstore merge A B OUT
  featstore merge DINO CLIP OUT --names dino,clip
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", nargs="+", type=store_folder, help="folders of two or more stores")
    parser.add_argument("out", type=new_folder, help="folder of the new store")
    parser.add_argument(
        "--as", dest="kind", choices=["rows", "teachers"], help="kind of merge (default: see above)"
    )
    parser.add_argument(
        "--names",
        type=names,
        default=[],
        metavar="A,B",
        help="one per store; teachers: prefix of its field names, A_cls; rows: prefix of its ids, A/ID",
    )
    parser.add_argument(
        "--duplicates",
        choices=["refuse", "skip", "keep"],
        default="refuse",
        help="rows: images that an earlier store has under another id (default: refuse)",
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
        raise ConfigError("--missing is for --as teachers: appended rows need no match.")
    if arguments.kind == "teachers" and arguments.duplicates != "refuse":
        raise ConfigError(
            "--duplicates is for --as rows: several teachers are merged on the same images."
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
    how = {"rows": "rows appended", "teachers": "fields side by side"}[made.kind]
    fields = ", ".join(sorted(made.manifest.fields))
    return [
        f"merged       {how}",
        *(f"note         {note}" for note in made.notes),
        f"{out}: complete, {made.manifest.num_rows:,} rows of {fields}",
    ]

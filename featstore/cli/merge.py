"""``featstore merge``."""

import argparse

from featstore.cli import arguments as cli
from featstore.derive.merge import merge
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

ARGUMENTS = {
    "store": cli.value("folders of two or more stores", cli.store_folder, nargs="+"),
    "out": cli.OUT,
    "--as": cli.choice("kind of merge (default: see above)", ("rows", "teachers"), dest="kind"),
    "--names": cli.value(
        "one per store; teachers: prefix of its field names, A_cls; rows: prefix of its ids, A/ID",
        cli.names,
        default=[],
        metavar="A,B",
    ),
    "--duplicates": {**cli.DUPLICATES, "help": f"rows: {cli.DUPLICATES['help']}"},
    "--missing": cli.choice(
        "teachers: images that are not in every store; invalid keeps them, without features (default: refuse)",
        ("refuse", "drop", "invalid"),
        default="refuse",
    ),
}

HOW = {"rows": "rows appended", "teachers": "fields side by side"}


def run(arguments: argparse.Namespace) -> int:
    """Write several stores as one."""
    if arguments.kind == "rows" and arguments.missing != "refuse":
        raise ConfigError("--missing is for --as teachers: appended rows need no match.")
    if arguments.kind == "teachers" and arguments.duplicates != "refuse":
        raise ConfigError(
            "--duplicates is for --as rows: several teachers are merged on the same images."
        )
    out, options = arguments.out, cli.picked(arguments, "kind", "duplicates", "missing", "names")
    with cli.bar(arguments, " shards") as progress:
        found = merge(arguments.store, out, **options, progress=progress)
    manifest = found.manifest
    lines = [f"merged       {HOW[found.kind]}", *(f"note         {note}" for note in found.notes)]
    fields = ", ".join(sorted(manifest.fields))
    lines.append(f"{out}: complete, {manifest.num_rows:,} rows of {fields}")
    return cli.show(arguments, cli.made(out, manifest, kind=found.kind, notes=found.notes), lines)

"""``featstore export``."""

import argparse
import sys

from tqdm import tqdm

from featstore.cli import arguments as cli
from featstore.derive.export import PACKAGES, export
from featstore.display.text import count, format_bytes

DESCRIPTION = """\
Write features for tools that do not read stores:

  npy      one array per field, to be memory-mapped, and the ids in a text file
  parquet  tables for DuckDB, Polars, Spark, vector databases, datasets.load_dataset
  hf       a Hugging Face data set, for datasets.load_from_disk

export.json describes every column and its origin. Images without a usable feature are left out and counted. Run the
same command again to resume.
"""

ARGUMENTS = {
    "store": cli.STORE_OR_URL,
    "out": cli.value("folder to write", cli.new_folder),
    "--format": cli.choice("format of the files", PACKAGES, required=True),
    "--fields": cli.FIELDS,
    "--where": cli.WHERE,
    "--canonical": cli.flag("the canonical view only; arrays then have no view axis"),
    "--float32": cli.flag(
        "float16 as float32 too, for tools that lack it (bfloat16 and int8 always become float32)"
    ),
    "--keep-invalid": cli.flag("also images without a usable feature, as zeros with valid = false"),
}


def run(arguments: argparse.Namespace) -> int:
    """Write a store in another format."""

    def announce(rows: int, size: int) -> None:
        tqdm.write(f"{rows:,} rows, about {format_bytes(size)}", file=sys.stderr)

    options = cli.picked(arguments, "fields", "where", "float32", "canonical", "keep_invalid")
    with cli.bar(arguments, " rows") as progress:
        made = export(
            arguments.store,
            arguments.out,
            arguments.format,
            **options,
            announce=announce,
            progress=progress,
        )
    values = {
        **{"path": str(made.path), "rows": made.rows, "bytes": made.bytes},
        "left_out": {"invalid": made.invalid, "unmatched": made.unmatched},
        "resumed": made.resumed,
    }
    lines = [f"resumed after {made.resumed:,} rows"] if made.resumed else []
    lines.append(f"{made.path}: {made.rows:,} rows, {format_bytes(made.bytes)}")
    if made.invalid:
        lines.append(
            f"left out: {count(made.invalid, 'image')} without a usable feature (--keep-invalid)"
        )
    if made.unmatched:
        lines.append(f"left out: {count(made.unmatched, 'image')} that --where does not match")
    return cli.show(arguments, values, [*lines, f"next: {_next(arguments)}"])


def _next(arguments: argparse.Namespace) -> str:
    """Return the code that reads the export."""
    out = arguments.out
    if arguments.format == "hf":
        return f'datasets.load_from_disk("{out}")'
    if arguments.format == "parquet":
        return f'datasets.load_dataset("{out}"), or any reader of {out}/data/*.parquet'
    name = f"{out}/fields/{(arguments.fields or ['NAME'])[0]}.npy"
    return f'numpy.load("{name}", mmap_mode="r"); ids are the lines of {out}/ids.txt'

"""``featstore export``."""

import argparse
import json
import sys

from tqdm import tqdm

from featstore.cli.arguments import names, new_folder, store_address
from featstore.cli.progress_bar import progress_bar
from featstore.derive.export import export
from featstore.text import format_bytes

DESCRIPTION = """\
Write features for tools that do not read stores:

  npy      one array per field, to be memory-mapped, and the ids in a text file
  parquet  tables for DuckDB, Polars, Spark, vector databases, datasets.load_dataset
  hf       a Hugging Face data set, for datasets.load_from_disk

export.json describes every column and its origin. Images without a usable feature are left out and counted. Run the
same command again to resume.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_address, help="folder or URL of the store")
    parser.add_argument("out", type=new_folder, help="folder to write")
    parser.add_argument("--format", required=True, choices=["npy", "parquet", "hf"])
    parser.add_argument("--fields", type=names, metavar="A,B", help="fields to take (default: all)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PATTERN",
        help="take images whose id matches, e.g. 'train/*'; may be repeated",
    )
    parser.add_argument(
        "--canonical",
        action="store_true",
        help="the canonical view only; arrays then have no view axis",
    )
    parser.add_argument(
        "--float32",
        action="store_true",
        help="float16 as float32 too, for tools that lack it (bfloat16 and int8 always become float32)",
    )
    parser.add_argument(
        "--keep-invalid",
        action="store_true",
        help="also images without a usable feature, as zeros with valid = false",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write a store in another format; returns the exit status."""

    def announce(rows: int, size: int) -> None:
        tqdm.write(f"{rows:,} rows, about {format_bytes(size)}", file=sys.stderr)

    with progress_bar(" rows", show=not arguments.json) as progress:
        made = export(
            arguments.store,
            arguments.out,
            arguments.format,
            fields=arguments.fields,
            where=arguments.where,
            float32=arguments.float32,
            canonical=arguments.canonical,
            keep_invalid=arguments.keep_invalid,
            announce=announce,
            progress=progress,
        )
    left_out = {"invalid": made.invalid, "unmatched": made.unmatched}
    if arguments.json:
        found = {"path": str(made.path), "rows": made.rows, "bytes": made.bytes}
        print(json.dumps({**found, "left_out": left_out, "resumed": made.resumed}, indent=2))
        return 0
    if made.resumed:
        print(f"resumed after {made.resumed:,} rows")
    print(f"{made.path}: {made.rows:,} rows, {format_bytes(made.bytes)}")
    if made.invalid:
        print(f"left out: {made.invalid:,} images without a usable feature (--keep-invalid)")
    if made.unmatched:
        print(f"left out: {made.unmatched:,} images that --where does not match")
    print(f"next: {_next(arguments)}")
    return 0


def _next(arguments: argparse.Namespace) -> str:
    """Return the code that reads the export."""
    out = arguments.out
    if arguments.format == "hf":
        return f'datasets.load_from_disk("{out}")'
    if arguments.format == "parquet":
        return f'datasets.load_dataset("{out}"), or any reader of {out}/data/*.parquet'
    name = f"{out}/fields/{(arguments.fields or ['NAME'])[0]}.npy"
    return f'numpy.load("{name}", mmap_mode="r"); ids are the lines of {out}/ids.txt'

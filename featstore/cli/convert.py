"""``featstore convert``."""

import argparse
import json

from featstore.cli.arguments import new_folder, positive, store_folder
from featstore.cli.progress_bar import progress_bar
from featstore.derive.convert import convert

DESCRIPTION = """\
Write the rows of a store in the other container, with another codec, or in shards of another size. Rows are equal bit
by bit, and so is the fingerprint. Run the same command again to resume.

  featstore convert STORE OUT --container webdataset
  featstore convert STORE OUT --codec bitshuffle
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_folder, help="folder of the store")
    parser.add_argument("out", type=new_folder, help="folder of the new store")
    parser.add_argument(
        "--container", choices=["zarr", "webdataset"], help="of the new store (default: as before)"
    )
    parser.add_argument(
        "--codec",
        choices=["raw", "zstd", "bitshuffle"],
        help="of its fields; other than raw in zarr only (default: as before)",
    )
    parser.add_argument(
        "--shard-rows", type=positive, help="rows of its shards (default: as before)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write a store in another container; returns the exit status."""
    with progress_bar(" shards", show=not arguments.json) as progress:
        manifest = convert(
            arguments.store,
            arguments.out,
            container=arguments.container,
            codec=arguments.codec,
            shard_rows=arguments.shard_rows,
            progress=progress,
        )
    if arguments.json:
        result = {
            "path": str(arguments.out),
            "container": manifest.container,
            "rows": manifest.num_rows,
            "shards": manifest.num_shards,
            "fingerprint": manifest.fingerprint,
        }
        print(json.dumps(result, indent=2))
        return 0
    print(
        f"{arguments.out}: {manifest.num_rows:,} rows in {manifest.num_shards:,} {manifest.container} shards, "
        f"fingerprint {manifest.fingerprint[:16]}, as before"
    )
    return 0

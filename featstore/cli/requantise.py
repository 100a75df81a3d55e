"""``featstore requantise``."""

import argparse
import json
from typing import Any

from featstore.cli.arguments import new_folder, positive, store_folder
from featstore.cli.progress_bar import progress_bar
from featstore.derive.requantise import Change, requantise

DESCRIPTION = """\
Write a store with its features in another type, without the teacher; rows, ids and views are the same. The rounding
error is measured and recorded in the new manifest. Run the same command again to resume.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_folder, help="folder of the store")
    parser.add_argument("out", type=new_folder, help="folder of the new store")
    parser.add_argument(
        "--dtype",
        required=True,
        choices=["int8", "bfloat16", "float16", "float32"],
        help="type of the new store",
    )
    parser.add_argument(
        "--allow-widening",
        action="store_true",
        help="allow a type with more digits than the stored one",
    )
    parser.add_argument(
        "--rows",
        type=positive,
        default=2048,
        help="rows that scales and errors are measured on (default: 2048)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write a store in another type; returns the exit status."""
    with progress_bar(" shards", show=not arguments.json) as progress:
        manifest, changes = requantise(
            arguments.store,
            arguments.out,
            arguments.dtype,
            allow_widening=arguments.allow_widening,
            sample_rows=arguments.rows,
            progress=progress,
        )
    if arguments.json:
        result = {"path": str(arguments.out), "changes": [as_json(change) for change in changes]}
        print(json.dumps(result, indent=2))
        return 0
    for change in changes:
        error = change.error
        print(
            f"field        {change.field}: {change.before} -> {change.after}, relative error {error.relative_l2:.1e}, "
            f"cosine {error.cosine_mean:.6f} (worst {error.cosine_worst:.6f}) on {change.sample_rows:,} rows"
        )
    print(f"{arguments.out}: complete, {manifest.num_rows:,} rows")
    return 0


def as_json(change: Change) -> dict[str, Any]:
    """A change as plain JSON values."""
    return {
        "field": change.field,
        "before": change.before,
        "after": change.after,
        "relative_l2": change.error.relative_l2,
        "cosine_mean": change.error.cosine_mean,
        "cosine_worst": change.error.cosine_worst,
        "sample_rows": change.sample_rows,
    }

"""``featstore requantise``."""

import argparse
from typing import get_args

from featstore.cli.arguments import OUT, STORE, bar, choice, flag, made, positive, show, value
from featstore.derive.requantise import StoredType, requantise

DESCRIPTION = """\
Write a store with its features in another type, without the teacher; rows, ids and views are the same. The rounding
error is measured and recorded in the new manifest. Run the same command again to resume.
"""

ARGUMENTS = {
    "store": STORE,
    "out": OUT,
    "--dtype": choice("type of the new store", get_args(StoredType), required=True),
    "--allow-widening": flag("allow a type with more digits than the stored one"),
    "--rows": value(
        "rows that scales and errors are measured on (default: 2048)", positive, default=2048
    ),
}


def run(arguments: argparse.Namespace) -> int:
    """Write a store in another type."""
    out = arguments.out
    with bar(arguments, " shards") as progress:
        manifest, changes = requantise(
            arguments.store,
            out,
            arguments.dtype,
            allow_widening=arguments.allow_widening,
            sample_rows=arguments.rows,
            progress=progress,
        )
    values, lines = [], []
    for change in changes:
        error = change.error
        found = {
            name: getattr(change, name) for name in ("field", "before", "after", "sample_rows")
        }
        measured = ("relative_l2", "cosine_mean", "cosine_worst")
        values.append({**found, **{name: getattr(error, name) for name in measured}})
        lines.append(
            f"field        {change.field}: {change.before} -> {change.after}, relative error {error.relative_l2:.1e}, "
            f"cosine {error.cosine_mean:.6f} (worst {error.cosine_worst:.6f}) on {change.sample_rows:,} rows"
        )
    lines.append(f"{out}: complete, {manifest.num_rows:,} rows")
    return show(arguments, made(out, manifest, changes=values), lines)

"""``featstore split``."""

import argparse
from pathlib import Path

from featstore.cli.arguments import STORE, bar, flag, made, picked, show, value
from featstore.derive.split import split
from featstore.errors import ConfigError

DESCRIPTION = """\
Write a store as several stores, e.g. one for training and one for test. Rows are assigned by the content of their
images, so images of equal content stay together, whatever their names and order. Run the same command again to
resume.

  featstore split STORE TRAIN=0.8 TEST=0.2 --by-class
"""


def _share(text: str) -> tuple[Path, float]:
    folder, _, share = text.rpartition("=")
    if not folder:
        raise ValueError(text)
    return Path(folder), float(share)


ARGUMENTS = {
    "store": STORE,
    "out": value(
        "folder of a part, and its share of the rows; shares add up to 1",
        _share,
        nargs="+",
        metavar="OUT=SHARE",
    ),
    "--seed": value("seed of the choice (default: 0)", int, default=0),
    "--by-class": flag(
        "meet the shares exactly in each class. Without it they are met nearly, but an image stays in its part when "
        "the store grows"
    ),
}


def run(arguments: argparse.Namespace) -> int:
    """Write the parts of a store."""
    outs = dict(arguments.out)
    if len(outs) < len(arguments.out):
        raise ConfigError(
            "OUT=SHARE: a folder is given twice; name a different folder for each part."
        )
    with bar(arguments, " shards") as progress:
        found = split(
            arguments.store, outs, **picked(arguments, "seed", "by_class"), progress=progress
        )
    parts = [made(out, manifest) for out, manifest in zip(outs, found, strict=True)]
    total = sum(part["rows"] for part in parts)
    lines = [
        f"{part['path']}: complete, {part['rows']:,} rows ({part['rows'] / total:.1%})"
        for part in parts
    ]
    return show(arguments, {"parts": parts}, lines)

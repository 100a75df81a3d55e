"""``featstore split``."""

import argparse
import json
from pathlib import Path

from featstore.cli.arguments import store_folder
from featstore.cli.progress_bar import progress_bar
from featstore.derive.split import split
from featstore.errors import ConfigError

DESCRIPTION = """\
Write a store as several stores, e.g. one for training and one for test. Rows are assigned by the content of their
images, so images of equal content stay together, whatever their names and order. Run the same command again to
resume.

  featstore split STORE TRAIN=0.8 TEST=0.2 --by-class
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_folder, help="folder of the store")
    parser.add_argument(
        "out",
        nargs="+",
        type=_share,
        metavar="OUT=SHARE",
        help="folder of a part, and its share of the rows; shares add up to 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    parser.add_argument(
        "--by-class",
        action="store_true",
        help="meet the shares exactly in each class. Without it they are met nearly, but an image stays in its part "
        "when the store grows",
    )


def _share(text: str) -> tuple[Path, float]:
    folder, _, share = text.rpartition("=")
    if not folder:
        raise ValueError(text)
    return Path(folder), float(share)


def run(arguments: argparse.Namespace) -> int:
    """Write the parts of a store; returns the exit status."""
    outs = dict(arguments.out)
    if len(outs) < len(arguments.out):
        raise ConfigError(
            "OUT=SHARE: a folder is given twice; name a different folder for each part."
        )
    with progress_bar(" shards", show=not arguments.json) as progress:
        made = split(
            arguments.store,
            outs,
            seed=arguments.seed,
            by_class=arguments.by_class,
            progress=progress,
        )
    if arguments.json:
        parts = [
            {"path": str(out), "rows": manifest.num_rows, "fingerprint": manifest.fingerprint}
            for out, manifest in zip(outs, made, strict=True)
        ]
        print(json.dumps({"parts": parts}, indent=2))
        return 0
    total = sum(manifest.num_rows for manifest in made)
    for out, manifest in zip(outs, made, strict=True):
        print(f"{out}: complete, {manifest.num_rows:,} rows ({manifest.num_rows / total:.1%})")
    return 0

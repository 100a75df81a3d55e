"""``featstore plan``."""

import argparse
import json
import re
from pathlib import Path

from featstore.cli.arguments import STORE_OR_URL, picked, positive, repeated, value
from featstore.errors import ConfigError
from featstore.planning.estimate import Estimate, Measured, Wanted, estimate, measure_store

DEFAULT_DTYPE = "float16"

DESCRIPTION = """\
Estimate bytes, files and hours before anything is written. Two forms:

  featstore plan STORE
      measures each type and codec on rows of a store
  featstore plan --images 1281167 --field cls=1024 --field grid7=7x7x1024:float16
      computes from shapes, with typical compression ratios
"""

ARGUMENTS = {
    "store": {**STORE_OR_URL, "nargs": "?", "help": "folder or URL of a store to measure on"},
    "--rows": value("rows to measure (default: 512)", positive, default=512),
    "--images": value("images of the planned store", positive),
    "--field": repeated(
        "a field of it, e.g. cls=1024 or grid7=7x7x1024:bfloat16; may be repeated",
        "NAME=SHAPE[:DTYPE]",
    ),
    "--views": value("views per image (default: 1)", positive, default=1),
    "--shard-rows": value("most rows of a shard (default: 4096)", positive, default=4096),
    "--images-per-second": value("rate of the teacher, all processes together", float),
    "--path": value("folder of the planned store: its disk is measured", Path),
}


def run(arguments: argparse.Namespace) -> int:
    """Measure on the rows of a store, or compute from shapes."""
    if (arguments.store is None) == (not arguments.field):
        raise ConfigError(
            "featstore plan needs either a STORE to measure on, or --images with one or more --field."
        )
    result: Estimate | Measured
    if arguments.store is not None:
        result = measure_store(arguments.store, arguments.rows)
    else:
        if arguments.images is None:
            raise ConfigError("--images is missing: expected the number of images.")
        result = estimate(
            arguments.images,
            [parse_field(text) for text in arguments.field],
            **picked(arguments, "views", "shard_rows", "images_per_second", "path"),
        )
    print(json.dumps(result.as_json(), indent=2) if arguments.json else result)
    return 0 if isinstance(result, Measured) or result.fits else 1


def parse_field(text: str) -> Wanted:
    """Parse ``cls=1024`` or ``grid7=7x7x1024:bfloat16``. Raises ConfigError: it has another form."""
    found = re.fullmatch(r"([^=]+)=(\d+(?:x\d+)*)(?::(\w+))?", text)
    if found is None:
        raise ConfigError(
            f"--field {text}: expected NAME=SHAPE[:DTYPE], e.g. grid7=7x7x1024:float16."
        )
    name, sizes, dtype = found.groups()
    return Wanted(name, tuple(int(size) for size in sizes.split("x")), dtype or DEFAULT_DTYPE)

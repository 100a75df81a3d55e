"""``featstore statistics``: write the record that pseudo-samples are drawn from."""

import argparse
import sys
from pathlib import Path

from featstore.cli.arguments import flag, positive, show, value
from featstore.display.text import format_bytes
from featstore.errors import ConfigError
from featstore.files.atomic import write_bytes
from featstore.format.pseudo_samples import LEAST, LEAST_PER_RANK, PseudoSamples
from featstore.sources import open_source
from featstore.sources.config import SourceConfig, source_of
from featstore.sources.statistics import MOST_IMAGES, measure_images

DESCRIPTION = (
    "Measure mean and covariance of images and write them as one small file. Another team draws pseudo-samples from it "
    "(featstore extract --source.kind synthetic) and never sees an image. The statistics are not anonymous: they show "
    "what the images of a class have in common."
)

ARGUMENTS = {
    "images": value("folder, tars, saved data set or digits; noise writes a record that is of no images"),
    "out": value("file to write, e.g. statistics.safetensors", Path),
    "--size": value("height and width of a pseudo-sample in pixels (default: 32)", positive, default=32),
    "--rank": value(
        "directions of the covariance that are kept, for each class; 0: variances alone (default: 0)", int, default=0
    ),
    "--overall": flag("measure all images together, without classes"),
    "--classes": value(
        "noise only: names of classes; every class has noise of its own", nargs="+", default=[], metavar="NAME"
    ),
    "--include": value("only images whose id matches, e.g. 'train/*'", nargs="+", default=["*"], metavar="PATTERN"),
    "--allow-few": flag(
        f"also measure classes of fewer than {LEAST} images, or {LEAST_PER_RANK} for each unit of --rank; such a "
        "record shows single images"
    ),
}  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Write a record."""
    skipped: list[str] = []
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out}: exists. Choose another name, or delete it.")
    if arguments.classes and arguments.images != "noise":
        raise ConfigError(
            f"--classes {' '.join(arguments.classes)}: for noise only; the classes of {arguments.images} are its own."
        )
    if arguments.images == "noise":
        record = PseudoSamples.noise(arguments.size, arguments.classes)
    else:
        source = open_source(SourceConfig(**source_of(arguments.images), include=arguments.include))
        record, skipped = measure_images(
            source,
            side=arguments.size,
            rank=arguments.rank,
            per_class=not arguments.overall,
            least=0 if arguments.allow_few else LEAST,
        )
    for line in skipped:
        print(f"note: left out {line}", file=sys.stderr)
    if min(record.counts) > MOST_IMAGES - 1:
        print(f"note: {MOST_IMAGES:,} images of a class are measured at most", file=sys.stderr)
    data = record.to_bytes()
    write_bytes(arguments.out, data)
    described = {
        "file": str(arguments.out),
        "bytes": len(data),
        "kind": record.kind,
        "size": record.size,
        "channels": record.channels,
        "rank": record.rank,
        "classes": record.classes,
        "images": record.counts,
        "skipped": skipped,
    }
    show(arguments, described, [f"{arguments.out}: {format_bytes(len(data))}, {record.meaning}"])
    return 0

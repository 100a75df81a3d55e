"""``featstore import``."""

import argparse
from pathlib import Path
from typing import get_args

from featstore.cli import arguments as cli
from featstore.format.manifest_records import FloatType
from featstore.importing.given_values import NO_WEIGHTS
from featstore.importing.imports import import_
from featstore.importing.tables import Kind
from featstore.sources.config import SourceConfig

DESCRIPTION = """\
Write features that another program computed as a store. Run the same command again to resume.

  featstore import features.npy OUT --ids ids.txt --teacher "my model v3"
  featstore import features.parquet OUT --ids path --field cls=embedding --teacher "my model v3"
  featstore import saved_data_set OUT --teacher "my model v3"              # Dataset.save_to_disk
  featstore import clip_folder OUT --teacher "open_clip ViT-B-32 laion2b"  # img_emb/, metadata/

For phase two, also give the images (--images), so that rows are bound to their bytes, and the side of the model's
square input (--size), so that the student is shown the same region.
"""


def _field(text: str) -> tuple[str, str]:
    name, _, column = text.partition("=")
    return name, column or name


ARGUMENTS = {
    "source": cli.value("file or folder of the features", Path),
    "out": cli.OUT,
    "--teacher": cli.value(
        "model that computed them, with its version", required=True, metavar="NAME"
    ),
    "--kind": cli.choice("format (default: found by what is there)", get_args(Kind)),
    "--field": cli.repeated(
        "field and its column (npy: its file in SOURCE); may be repeated (default: all columns of floating point "
        "lists)",
        "NAME=COLUMN",
        type=_field,
    ),
    "--ids": cli.value("column of the sample ids; npy: file with one id per line"),
    "--labels": cli.value("column of the labels; npy: file with one label per line"),
    "--dtype": cli.choice("of all fields", get_args(FloatType)),
    "--images": cli.value("images; their bytes are hashed", metavar="PATH"),
    "--images-kind": cli.choice("(default: folder)", ("folder", "tars", "hf"), default="folder"),
    "--size": cli.value("side of the model's square input, pixels", cli.positive),
    "--crop-pct": cli.value("share that the centre crop keeps", float, default=1.0),
    "--weights-sha256": cli.value("hash of the model's weights", default=NO_WEIGHTS),
    "--container": cli.choice("(default: zarr)", cli.CONTAINERS, default="zarr"),
    "--codec": cli.choice("(default: raw)", cli.CODECS, default="raw"),
    "--skip-invalid": cli.flag("store rows that are not finite as invalid"),
}


def run(arguments: argparse.Namespace) -> int:
    """Import features."""
    images = arguments.images and SourceConfig(
        kind=arguments.images_kind, path=arguments.images, labels_from="none"
    )
    with cli.bar(arguments, " rows") as progress:
        manifest = import_(
            arguments.source,
            arguments.out,
            **cli.picked(arguments, "teacher", "kind", "ids", "labels", "dtype"),
            **cli.picked(arguments, "weights_sha256", "container", "codec"),
            fields=dict(arguments.field) or None,
            images=images,
            preprocessing=cli.picked(arguments, "size", "crop_pct") if arguments.size else None,
            non_finite="invalid" if arguments.skip_invalid else "refuse",
            progress=progress,
        )
    shapes = [
        f"{name} ({' x '.join(map(str, record.shape))} {record.dtype})"
        for name, record in sorted(manifest.fields.items())
    ]
    line = f"{arguments.out}: complete, {manifest.num_rows:,} rows of {', '.join(shapes)}"
    return cli.show(arguments, cli.made(arguments.out, manifest), [line])

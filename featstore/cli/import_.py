"""``featstore import``."""

import argparse
import json
from pathlib import Path
from typing import Any

from featstore.cli.arguments import new_folder, positive
from featstore.cli.progress_bar import progress_bar
from featstore.importing.create import NO_WEIGHTS
from featstore.importing.imports import import_
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, help="file or folder of the features")
    parser.add_argument("out", type=new_folder, help="folder of the new store")
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="NAME",
        help="model that computed them, with its version",
    )
    parser.add_argument(
        "--kind",
        choices=["npy", "parquet", "hf", "clip-retrieval"],
        help="format (default: found by what is there)",
    )
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="field and its column (npy: its file in SOURCE); may be repeated (default: all columns of floating point "
        "lists)",
    )
    parser.add_argument("--ids", help="column of the sample ids; npy: file with one id per line")
    parser.add_argument("--labels", help="column of the labels; npy: file with one label per line")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="of all fields")
    parser.add_argument("--images", metavar="PATH", help="images; their bytes are hashed")
    parser.add_argument(
        "--images-kind",
        choices=["folder", "tars", "hf"],
        default="folder",
        help="(default: folder)",
    )
    parser.add_argument("--size", type=positive, help="side of the model's square input, pixels")
    parser.add_argument(
        "--crop-pct", type=float, default=1.0, help="share that the centre crop keeps"
    )
    parser.add_argument("--weights-sha256", default=NO_WEIGHTS, help="hash of the model's weights")
    parser.add_argument("--container", choices=["zarr", "webdataset"], default="zarr")
    parser.add_argument("--codec", choices=["raw", "zstd", "bitshuffle"], default="raw")
    parser.add_argument(
        "--skip-invalid", action="store_true", help="store rows that are not finite as invalid"
    )


def run(arguments: argparse.Namespace) -> int:
    """Import features; returns the exit status."""
    fields = dict(_field(text) for text in arguments.field)
    preprocessing: dict[str, Any] | None = None
    if arguments.size:
        preprocessing = {"size": arguments.size, "crop_pct": arguments.crop_pct}
    images = arguments.images and SourceConfig(
        kind=arguments.images_kind, path=arguments.images, labels_from="none"
    )
    with progress_bar(" rows", show=not arguments.json) as progress:
        manifest = import_(
            arguments.source,
            arguments.out,
            teacher=arguments.teacher,
            kind=arguments.kind,
            fields=fields or None,
            ids=arguments.ids,
            labels=arguments.labels,
            dtype=arguments.dtype,
            images=images,
            progress=progress,
            preprocessing=preprocessing,
            weights_sha256=arguments.weights_sha256,
            container=arguments.container,
            codec=arguments.codec,
            non_finite="invalid" if arguments.skip_invalid else "refuse",
        )
    if arguments.json:
        result = {
            "path": str(arguments.out),
            "rows": manifest.num_rows,
            "fields": sorted(manifest.fields),
            "fingerprint": manifest.fingerprint,
        }
        print(json.dumps(result, indent=2))
    else:
        shapes = [
            f"{name} ({' x '.join(map(str, record.shape))} {record.dtype})"
            for name, record in sorted(manifest.fields.items())
        ]
        print(f"{arguments.out}: complete, {manifest.num_rows:,} rows of {', '.join(shapes)}")
    return 0


def _field(text: str) -> tuple[str, str]:
    name, _, column = text.partition("=")
    return name, column or name

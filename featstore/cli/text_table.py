"""``featstore text-table``."""

import argparse
import json
from pathlib import Path

import numpy as np

from featstore.cli.arguments import new_folder, store_folder
from featstore.cli.progress_bar import progress_bar
from featstore.derive.subset import choose
from featstore.derive.text_table import add_text_table
from featstore.errors import ConfigError
from featstore.extraction.text_tables import make_table
from featstore.files.array_types import Array
from featstore.format.ids import read_ids
from featstore.reading.store import FeatureStore

DESCRIPTION = """\
Write a store with one more text table: names of classes, and where they lie in the teacher's space. Rows are not copied
where the disk has hard links. Students of task zeroshot are classified against such a table.

  featstore text-table STORE OUT --template 'a photo of a {}.'      # text side of the store's open_clip teacher
  featstore text-table STORE OUT --names names.txt --array table.npy --origin 'SigLIP, German prompts'
  featstore text-table STORE OUT --class-means --where 'train/*'    # a stand-in: no language

A file of names has one name per line, or name, tab and a text to use in its place; lines of one name are averaged.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", type=store_folder, help="folder of the store")
    parser.add_argument("out", type=new_folder, help="folder of the new store")
    parser.add_argument("--name", default="classes", help="name of the table (default: classes)")
    parser.add_argument(
        "--field", default="", help="vector field (default: projected, or the only vector)"
    )
    parser.add_argument(
        "--names", type=Path, metavar="FILE", help="names (default: classes of the store)"
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--array", type=Path, metavar="FILE.npy", help="embeddings, one row for each name"
    )
    kind.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="TEXT",
        help="prompt with {} for the name; may be repeated: the mean direction stands for the name",
    )
    kind.add_argument(
        "--class-means", action="store_true", help="mean direction of every class in the field"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="PATTERN",
        help="class means of the rows whose sample id matches; may be repeated (default: all)",
    )
    parser.add_argument("--weights", default="", help="local weights of the teacher")
    parser.add_argument("--origin", default="", help="how the array was made, for the manifest")


def run(arguments: argparse.Namespace) -> int:
    """Write the store; returns the exit status."""
    if arguments.where and not arguments.class_means:
        raise ConfigError("--where chooses rows for --class-means.")
    store = FeatureStore.open(arguments.store)
    table, field, origin = make_table(
        store,
        field=arguments.field,
        names=() if arguments.names is None else read_ids(arguments.names),
        array=None if arguments.array is None else _read(arguments.array),
        templates=arguments.template,
        weights=arguments.weights,
        origin_of_array=arguments.origin,
        rows=np.asarray(choose(store, where=arguments.where)) if arguments.where else None,
    )
    with progress_bar(" shards", show=not arguments.json) as progress:
        manifest = add_text_table(
            arguments.store,
            arguments.out,
            table,
            name=arguments.name,
            field=field,
            origin=origin,
            progress=progress,
        )
    if arguments.json:
        result = {
            "path": str(arguments.out),
            "texts": len(table.names),
            "width": table.width,
            "fingerprint": manifest.fingerprint,
        }
        print(json.dumps(result, indent=2))
    else:
        print(
            f"{arguments.out}: complete, {len(table.names):,} texts of width {table.width}, {origin}"
        )
    return 0


def _read(path: Path) -> Array:
    try:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--array {path}: not an npy file of numbers ({error}).") from None

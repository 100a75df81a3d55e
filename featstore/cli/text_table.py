"""``featstore text-table``."""

import argparse
from pathlib import Path

import numpy as np

from featstore.cli import arguments as cli
from featstore.derive.subset import choose_rows
from featstore.derive.text_table import add_text_table
from featstore.errors import ConfigError
from featstore.extraction.text_tables import make_table
from featstore.files.array_types import Array
from featstore.files.numpy_files import read_npy
from featstore.format.ids import read_ids
from featstore.reading.store import FeatureStore

DESCRIPTION = """\
Write a store with one more text table: names of classes and their embeddings in the teacher's space. Rows are not
copied where the disk has hard links. Students of task zeroshot are classified against such a table.

  featstore text-table STORE OUT --template 'a photo of a {}.'      # text side of the store's open_clip teacher
  featstore text-table STORE OUT --names names.txt --array table.npy --origin 'SigLIP, German prompts'
  featstore text-table STORE OUT --class-means --where 'train/*'    # a stand-in: no language

A file of names has one name per line, or name, tab and a text to use in its place; lines of one name are averaged.
"""


ARGUMENTS = {
    "store": cli.STORE,
    "out": cli.OUT,
    "--name": cli.value("name of the table (default: classes)", default="classes"),
    "--field": cli.value("vector field (default: projected, or the only vector)", default=""),
    "--names": cli.value("names (default: classes of the store)", Path, metavar="FILE"),
    "--array": cli.value("embeddings, one row for each name", Path, metavar="FILE.npy"),
    "--template": cli.repeated(
        "prompt with {} for the name; may be repeated: the mean direction stands for the name",
        "TEXT",
    ),
    "--class-means": cli.flag("mean direction of every class in the field"),
    "--where": cli.repeated(
        "class means of the rows whose sample id matches; may be repeated (default: all)", "PATTERN"
    ),
    "--weights": cli.value("local weights of the teacher", default=""),
    "--origin": cli.value("how the array was made, for the manifest", default=""),
}


def run(arguments: argparse.Namespace) -> int:
    """Write the store."""
    if bool(arguments.array) + bool(arguments.template) + arguments.class_means != 1:
        raise ConfigError("give one of --array, --template and --class-means.")
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
        rows=np.asarray(choose_rows(store, where=arguments.where)) if arguments.where else None,
    )
    with cli.bar(arguments, " shards") as progress:
        manifest = add_text_table(
            arguments.store,
            arguments.out,
            table,
            name=arguments.name,
            field=field,
            origin=origin,
            progress=progress,
        )
    values = cli.made(arguments.out, manifest, texts=len(table.names), width=table.width)
    texts = f"{len(table.names):,} texts of width {table.width}"
    return cli.show(arguments, values, [f"{arguments.out}: complete, {texts}, {origin}"])


def _read(path: Path) -> Array:
    try:
        return read_npy(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--array {path}: not an npy file of numbers ({error}).") from None

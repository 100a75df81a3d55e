"""Make text tables: by the text side of a teacher, from the user's own array, or as means of classes."""

# n names, D width of the projection

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featstore.derive.text_table import class_means, prompts, vector_width
from featstore.errors import ConfigError, TeacherError, shorten
from featstore.extraction.config import TeacherConfig, TextTableConfig
from featstore.files.array_types import Array, Rows
from featstore.format.ids import read_ids
from featstore.format.text_table import TextTable
from featstore.reading.store import FeatureStore

FIELD = "projected"  # field of the image side in whose space the texts of a two-tower model lie

Encode = Callable[[Sequence[str]], tuple[Array, str]]
"""(n, D) embeddings of n texts, and the hash of the weights of the image side."""


def lines_of(config: TextTableConfig, class_names: Sequence[str]) -> list[str]:
    """The names of a table: of a file, or the classes of the images.

    Raises:
        TeacherError: Neither is there.
        ConfigError: The file cannot be read.
    """
    if config.names:
        return read_ids(Path(config.names).expanduser())
    if not class_names:
        raise TeacherError(
            f"--texts {config.name}: the images have no class names. Give a file with one name per line, names: FILE."
        )
    return list(class_names)


def table_origin(teacher: str, lines: Sequence[str], templates: Sequence[str]) -> str:
    """What pins a table in the manifest: teacher, templates, and the file's names by their number and hash."""
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"text side of {teacher}, templates {json.dumps(list(templates))}, names sha256 {digest}"


def encode_table(
    encode: Encode, lines: Sequence[str], templates: Sequence[str], *, weights_sha256: str
) -> TextTable:
    """Embed all prompts; a name's row is the mean direction of its prompts.

    Args:
        weights_sha256: of the image side that made the store's features.

    Raises:
        TeacherError: the text side belongs to other weights.
        ConfigError: see ``prompts`` and ``TextTable.of``.
    """
    asked = prompts(lines, templates)
    vectors, found = encode([text for texts in asked.values() for text in texts])
    if found != weights_sha256:
        raise TeacherError(
            f"text table: the text side belongs to an image side with weights {found[:12]}, the store's features are "
            f"of {weights_sha256[:12]}. Give the weights that the store was made with."
        )
    rows, start = [], 0
    for texts in asked.values():
        part = TextTable.of(
            [str(i) for i in range(len(texts))], vectors[start : start + len(texts)]
        )
        rows.append(part.embedding.mean(axis=0))
        start += len(texts)
    return TextTable.of(list(asked), np.stack(rows))


def text_side(config: TeacherConfig) -> Encode:
    """The text side of a teacher. Raises TeacherError: the library has none here."""
    if config.library == "open_clip":
        from featstore.extraction.teachers.open_clip_teacher import encode_texts

        return lambda texts: encode_texts(config, texts)
    raise TeacherError(
        f"--teacher.library {config.library}: has no text side here ({shorten(['open_clip'])} has). Embed the texts "
        "with a program of your own and add them with: featstore text-table STORE OUT --names FILE --array FILE.npy."
    )


def make_table(
    store: FeatureStore,
    *,
    field: str = "",
    names: Sequence[str] = (),
    array: npt.ArrayLike | None = None,
    templates: Sequence[str] = (),
    weights: str = "",
    origin_of_array: str = "",
    rows: Rows | None = None,
) -> tuple[TextTable, str, str]:
    """Make a table for a store: from an array, else by prompts and the text side of its teacher, else class means.

    Args:
        field: vector field in whose space the texts lie; empty takes projected, or the only vector.
        names: (n,) names, see ``prompts``; none takes the class names of the store.
        array: (n, D) embeddings of the names.
        templates: prompts for the text side of the teacher that made the field.
        weights: local weights of that teacher; empty for the library's own.
        rows: rows that class means average over; all if not given.

    Returns:
        The table, the field, and its origin for the manifest.
    """
    from featstore.extraction.recompute import recorded_config

    if array is not None and templates:
        raise ConfigError("give --array or --template, not both.")
    field = field or _only_vector(store)
    vector_width(store, field)
    lines = list(names) or list(store.manifest.source.class_names)
    if (array is not None or templates) and not lines:
        raise ConfigError(f"{store.address}: has no class names; give names.")
    if array is not None:
        how = origin_of_array or "an array of the user's"
        return TextTable.of(lines, array), field, how
    if templates:
        name, record = store.manifest.fields[field].teacher, store.manifest.teacher_of(field)
        if record.library == "external":
            raise TeacherError(
                f"{store.address}: field {field!r} was made elsewhere; embed the texts there and give them as --array."
            )
        config = recorded_config(store, name, weights)
        table = encode_table(
            text_side(config), lines, templates, weights_sha256=record.weights_sha256
        )
        model = " ".join([record.name, record.tag]).strip()
        return table, field, table_origin(model, lines, templates)
    if names:
        raise ConfigError("names alone make no table: give --array or --template beside --names.")
    count = store.num_rows if rows is None else len(rows)
    how = f"stand-in for texts: class means of the field itself over {count} rows, no language"
    return class_means(store, field, rows), field, how


def _only_vector(store: FeatureStore) -> str:
    fields = store.manifest.fields
    if FIELD in fields:
        return FIELD
    vectors = [name for name, record in fields.items() if len(record.shape) == 1]
    if len(vectors) != 1:
        raise ConfigError(
            f"{store.address}: has {len(vectors)} vector fields; name one: {shorten(sorted(fields))}."
        )
    return vectors[0]

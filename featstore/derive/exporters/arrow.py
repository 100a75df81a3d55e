"""Tables: Parquet files, or a data set of the Hugging Face library on disk. One file for each shard with chosen rows.

Vectors and grids are lists of fixed size, one in the other. Both formats carry the types as the ``datasets`` library
writes them, so that it reads back class names and shapes.
"""

# n rows of a batch, V views

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featstore.derive.exporters.base import CONTENT, LABEL, ExportBatch, ExportColumn, Exporter
from featstore.files.array_types import Array
from featstore.files.atomic import make_folder, refused, write_bytes
from featstore.format.fields import Ragged

ARRAY_AXES = range(2, 6)
"""Arrays of so many axes have a type of their own in a data set (Array2D to Array5D), read far faster than lists."""

README = """\
---
configs:
- config_name: default
  data_files: data/*.parquet
---
Features of images, exported from a feature store. `export.json` describes every column, its teacher and the
images.
"""
"""Names the data files for the hub and for ``load_dataset(FOLDER)``."""


class ArrowExporter(Exporter):
    """Writes tables.

    Args:
        form: Parquet, or hf for a data set.
        description: Content of ``export.json``, kept in every file.
        state: Of a run that was stopped; empty at the start.
    """

    def __init__(
        self,
        folder: Path,
        columns: Sequence[ExportColumn],
        form: Literal["parquet", "hf"],
        *,
        num_parts: int,
        class_names: Sequence[str],
        description: bytes,
        state: Mapping[str, int],
    ) -> None:
        self._folder, self._columns, self._form = folder, columns, form
        self._num_parts = num_parts
        self._description = description
        self._done = state.get("files", 0)
        self._file: BinaryIO | None = None
        features = {column.name: _feature(column, class_names, form) for column in columns}
        self._schema = self._make_schema(features)
        if form == "parquet":
            make_folder(folder / "data")

    def _make_schema(self, features: dict[str, Any]) -> Any:
        known = {"info": {"features": features}}
        metadata = {"huggingface": json.dumps(known), "featstore": self._description}
        if self._form == "parquet":
            schema = pa.schema([(column.name, arrow_type(column)) for column in self._columns])
            return schema.with_metadata(metadata)
        # Not needed for Parquet files.
        from datasets import DatasetInfo, Features

        typed = Features.from_dict(features)
        self._info = DatasetInfo(features=typed)
        return typed.arrow_schema.with_metadata(metadata)

    def _name(self, part: int) -> str:
        if self._form == "parquet":
            return f"data/part-{part:05d}.parquet"
        return f"data-{part:05d}-of-{self._num_parts:05d}.arrow"

    def begin(self, part: int) -> None:
        self._path = self._folder / self._name(part)
        with refused(self._path, 0):
            self._file = self._path.open("wb")
        if self._form == "parquet":
            # Features hardly compress by more than their exponents: no dictionaries, and bounds of the rest only.
            self._writer = pq.ParquetWriter(
                self._file,
                self._schema,
                compression="zstd",
                use_dictionary=False,
                write_statistics=[
                    column.name
                    for column in self._columns
                    if not column.field and column.name != CONTENT
                ],
            )
        else:
            self._writer = pa.ipc.new_stream(self._file, self._schema)

    def add(self, batch: ExportBatch) -> None:
        """Write some rows: a row group, or a record batch."""
        arrays = [
            arrow_array(batch[column.name], column, self._schema.field(column.name).type)
            for column in self._columns
        ]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        with refused(self._path, table.nbytes):
            self._writer.write_table(table)

    def end(self) -> None:
        """End the file; it is on the disk."""
        assert self._file is not None
        with refused(self._path, 0):
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._file = None
        self._done += 1

    def close(self) -> None:
        """Close the file of a part that was not ended."""
        if self._file is not None:
            with suppress(OSError):  # a full disk was reported before
                self._writer.close()
            with suppress(OSError):
                self._file.close()

    def state(self) -> dict[str, int]:
        """How many files there are."""
        return {"files": self._done}

    def finish(self) -> None:
        """Write the files that readers expect next to the data."""
        if self._form == "parquet":
            write_bytes(self._folder / "README.md", README.encode())
            return
        self._info.write_to_directory(str(self._folder))
        # Dataset.save_to_disk writes this file; load_from_disk reads it.
        state = {
            "_data_files": [{"filename": self._name(part)} for part in range(self._num_parts)],
            "_fingerprint": json.loads(self._description)["store"]["fingerprint"][:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        write_bytes(self._folder / "state.json", json.dumps(state, indent=2).encode())


def _feature(column: ExportColumn, class_names: Sequence[str], form: str) -> dict[str, Any]:
    """A column's type in the words of the datasets library."""
    if column.name == LABEL and class_names and len(set(class_names)) == len(class_names):
        return {"names": list(class_names), "_type": "ClassLabel"}
    dtype = "string" if column.dtype is None or column.name == CONTENT else column.dtype.name
    if form == "hf" and column.kind == "numbers" and len(column.shape) in ARRAY_AXES:
        axes = len(column.shape)
        return {"shape": list(column.shape), "dtype": dtype, "_type": f"Array{axes}D"}
    feature: dict[str, Any] = {"dtype": dtype, "_type": "Value"}
    shape = () if column.name == CONTENT else column.shape
    for size in reversed(shape):
        feature = {"feature": feature, "length": size, "_type": "Sequence"}
    if column.kind == "ragged":
        feature = {"feature": feature, "_type": "Sequence"}
        if column.lists:
            feature = {"feature": feature, "length": column.lists, "_type": "Sequence"}
    return feature


def arrow_type(column: ExportColumn) -> Any:
    """A column's type in Arrow."""
    text = column.dtype is None or column.name == CONTENT
    kind = pa.string() if text else pa.from_numpy_dtype(column.dtype)
    for size in reversed(() if column.name == CONTENT else column.shape):
        kind = pa.list_(kind, size)
    if column.kind == "ragged":
        kind = pa.list_(kind)
        if column.lists:
            kind = pa.list_(kind, column.lists)
    return kind


def arrow_array(rows: Array | Ragged, column: ExportColumn, kind: Any) -> Any:
    """Rows of a column as an Arrow array of the type in the schema."""
    if isinstance(rows, Ragged):
        lists = pa.ListArray.from_arrays(
            pa.array(rows.offsets.astype(np.int32)), _nested(rows.values)
        )
        return pa.FixedSizeListArray.from_arrays(lists, column.lists) if column.lists else lists
    if column.name == CONTENT:
        return pa.array([row.tobytes().hex() for row in rows])
    if isinstance(kind, pa.ExtensionType):
        return pa.ExtensionArray.from_storage(kind, _lists(rows))
    return _nested(rows)


def _nested(rows: Array) -> Any:
    """Lists of fixed size, one in the other, without a copy."""
    flat = np.ascontiguousarray(rows).reshape(-1)
    array = pa.array(flat, pa.string()) if flat.dtype == object else pa.array(flat)
    for size in reversed(rows.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _lists(rows: Array) -> Any:
    """Lists of any size, one in the other: what the array types of the datasets library are stored as."""
    array = pa.array(np.ascontiguousarray(rows).reshape(-1))
    for size in reversed(rows.shape[1:]):
        ends = np.arange(0, len(array) + 1, size, dtype=np.int32)
        array = pa.ListArray.from_arrays(pa.array(ends), array)
    return array

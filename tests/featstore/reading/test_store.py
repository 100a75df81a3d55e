"""A store gives back what was written, to us and to every stock Zarr reader."""

import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore import FeatureStore
from featstore.containers.zarr_chunks import CHUNK_BYTES, chunk_rows
from featstore.errors import ConfigError, MissingSamples
from featstore.format.fields import columns_of
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import FieldRecord
from tests.featstore.stores import (
    CLASSES,
    field,
    make_columns,
    make_manifest,
    names_of,
    write_store,
)

FIELDS = st.dictionaries(
    st.sampled_from(["cls", "grid2", "tokens", "mean.v-2", "0"]),
    st.builds(
        lambda shape, dtype: field(*shape, dtype=dtype),
        st.lists(st.integers(1, 4), min_size=0, max_size=3),
        st.sampled_from(["float16", "float32"]),
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any number of rows, rows per shard, views and fields, with and without labels."""
    return make_manifest(
        num_rows=draw(st.integers(1, 20)),
        shard_rows=draw(st.integers(1, 24)),
        views=draw(st.integers(1, 3)),
        fields=draw(FIELDS),
        labels=draw(st.booleans()),
    )


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(manifest=manifests())
def test_objects_are_those_that_zarr_writes(manifest: Manifest) -> None:
    """Each object equals, byte by byte, what zarr-python writes into arrays with our metadata.

    With ``write_empty_chunks``: without it zarr-python leaves out chunks of zeros, and a missing chunk would not be
    told from a lost one.
    """
    columns = make_columns(manifest)
    with TemporaryDirectory() as folder, zarr.config.set({"array.write_empty_chunks": True}):
        ours = write_store(Path(folder) / "ours", manifest, columns)
        theirs = write_store(Path(folder) / "theirs", manifest, columns, shards=[])
        group = zarr.open_group(theirs, mode="r+", use_consolidated=False)
        for name, values in columns.items():
            array: Any = group[name]
            for number in range(manifest.num_shards):
                rows = manifest.shard_range(number)
                array[rows.start : rows.stop] = values[rows.start : rows.stop]
        for name in columns:
            objects = {
                path.relative_to(theirs): path.read_bytes()
                for path in (theirs / name / "c").rglob("*")
                if path.is_file()
            }
            assert len(objects) == manifest.num_shards
            for path, expected in objects.items():
                assert (ours / path).read_bytes() == expected, path


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A store whose last shard is cut short, with fields of three ranks and both dtypes."""
    manifest = make_manifest(
        num_rows=11,
        shard_rows=4,
        fields={
            "cls": field(5),
            "tokens": field(3, 2, dtype="float32"),
            "grid2": field(2, 2, 3),
            # Rows of 65 kB: several inner chunks in each shard.
            "wide": field(16400, dtype="float32"),
        },
    )
    columns = make_columns(manifest)
    return write_store(tmp_path / "s", manifest, columns), columns


def test_zarr_python_reads_it(foreign: tuple[Path, dict[str, Any]]) -> None:
    """Stock zarr-python gives the same values, with axis names, through consolidated metadata."""
    path, columns = foreign
    group = zarr.open_consolidated(path, mode="r")
    for name, values in columns.items():
        array: Any = group[name]
        np.testing.assert_array_equal(array[:].astype(values.dtype), values, strict=True)
        assert array.metadata.dimension_names[0] == "sample"
    grid: Any = group["fields/grid2"]
    assert grid.metadata.dimension_names == ("sample", "view", "grid2_a", "grid2_b", "grid2_c")


def test_xarray_reads_it(foreign: tuple[Path, dict[str, Any]]) -> None:
    """xarray opens the fields as one data set with named dimensions."""
    path, columns = foreign
    with xarray.open_zarr(path, group="fields", chunks=None) as fields:
        assert set(fields) == {"cls", "tokens", "grid2", "wide"}
        for name in fields:
            np.testing.assert_array_equal(fields[name].values, columns[f"fields/{name}"])
        assert fields["cls"].dims == ("sample", "view", "cls_a")


def test_tensorstore_reads_it(foreign: tuple[Path, dict[str, Any]]) -> None:
    """tensorstore, which shares no code with zarr-python, reads every column of numbers."""
    path, columns = foreign
    for name, values in columns.items():
        if name == "sample_id":
            continue
        kvstore = {"driver": "file", "path": f"{path / name}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
        np.testing.assert_array_equal(array.read().result(), values)


def test_docs_snippet_reads_it(foreign: tuple[Path, dict[str, Any]]) -> None:
    """The code block of docs/format.md that reads with zarr works as it stands."""
    path, columns = foreign
    text = (Path(__file__).parents[3] / "docs" / "format.md").read_text()
    (block,) = [part for part in text.split("```") if part.startswith("python") and "zarr" in part]
    code = block.removeprefix("python").replace('"STORE"', repr(str(path)))
    names: dict[str, Any] = {}
    exec(code, names)
    np.testing.assert_array_equal(names["features"], columns["fields/cls"])
    assert list(names["names"]) == names_of(11)


@given(st.integers(1, 5000), st.integers(1, 10**6))
def test_chunks_divide_shards(shard_rows: int, row_bytes: int) -> None:
    """An inner chunk divides the shard, and is at most CHUNK_BYTES or one row."""
    rows = chunk_rows(shard_rows, row_bytes)
    assert shard_rows % rows == 0
    assert rows == 1 or rows * row_bytes <= CHUNK_BYTES


def _gather_in_child(store: FeatureStore, rows: list[int], answers: Any) -> None:
    answers.put((store.gather("cls", rows), store.sample_ids, store.labels))


def test_a_pickled_incomplete_store_stays_as_it_was_opened(tmp_path: Path) -> None:
    """A copy sees the shards that the original saw, not those that came later."""
    manifest = make_manifest()
    columns = make_columns(manifest)
    path = write_store(tmp_path / "s", manifest, columns, shards=[0])
    store = FeatureStore.open(path, allow_incomplete=True)
    write_store(path, manifest, columns, shards=[1])
    assert pickle.loads(pickle.dumps(store)).shards == store.shards == [0]


@pytest.mark.parametrize("rows", [[20], [-1], [0, 10**12]])
def test_rows_outside_the_store_are_refused(tmp_path: Path, rows: list[int]) -> None:
    """No wrap-around: a negative row is not counted from the end."""
    manifest = make_manifest()
    store = FeatureStore.open(write_store(tmp_path / "s", manifest, make_columns(manifest)))
    with pytest.raises(MissingSamples, match=r"\b0\b.*\b19\b"):
        store.gather("cls", rows)


@pytest.mark.parametrize("rows", [np.ones(20, dtype=bool), [0.0, 1.5], ["3"]])
def test_rows_must_be_integers(tmp_path: Path, rows: Any) -> None:
    """A mask or fractions as rows would silently give the wrong rows; they are refused."""
    manifest = make_manifest()
    store = FeatureStore.open(write_store(tmp_path / "s", manifest, make_columns(manifest)))
    with pytest.raises(ConfigError):
        store.gather("cls", rows)


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    """The message lists the fields that are there; a path is no way around it."""
    manifest = make_manifest()
    store = FeatureStore.open(write_store(tmp_path / "s", manifest, make_columns(manifest)))
    for name in ("logits", "../valid", "fields/cls", ""):
        with pytest.raises(ConfigError, match="grid2"):
            store.gather(name, [0])


def test_columns_follow_the_manifest() -> None:
    """A label column is there if and only if the source has labels; field axes are sample, view, then their own."""
    with_labels = columns_of(make_manifest())
    assert list(with_labels) == [
        "sample_id",
        "content_sha256",
        "valid",
        "label",
        "fields/cls",
        "fields/grid2",
    ]
    assert with_labels["fields/grid2"].shape == (2, 2, 2, 3)
    assert with_labels["fields/grid2"].dims == ("sample", "view", "grid2_a", "grid2_b", "grid2_c")
    assert "label" not in columns_of(make_manifest(labels=False))
    assert make_manifest().source.class_names == CLASSES


def test_bytes_of_a_row() -> None:
    """Views times shape times bytes of a number."""
    spec = FieldRecord(shape=(7, 7, 3), dtype="float16", dims=("y", "x", "channel"), meaning="")
    assert spec.row_bytes(4) == 4 * 7 * 7 * 3 * 2

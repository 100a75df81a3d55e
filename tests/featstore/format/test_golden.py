"""Stores that earlier releases wrote stay readable, and the page about the format is enough to read them."""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from featstore import FeatureStore
from featstore.format.artefacts import unpack_texts
from featstore.format.manifest_records import (
    Container,
    FieldRecord,
    Int8Encoding,
    RaggedEncoding,
    TopKEncoding,
)
from featstore.maintenance.verify import verify
from tests.conftest import ROOT
from tests.featstore import golden, golden_more
from tests.featstore.backend_tests import read, vectors
from tests.featstore.format import page_reader
from tests.featstore.format.page_reader import Damaged, PageReader
from tests.featstore.stores import snapshot

CONTAINERS: list[Container] = ["zarr", "webdataset"]
VALID = [row for row in range(golden.ROWS) if row != golden.INVALID]
STORES = sorted(path.name for path in golden.FOLDER.iterdir())


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_golden_store_reads(container: Container) -> None:
    """Every field of a store of version 1 gives the values it was made of."""
    store = FeatureStore.open(golden.FOLDER / f"store_v1_{container}")
    assert store.complete
    assert store.sample_ids == golden.IDS
    assert store.labels.tolist() == [row % 3 - 1 for row in range(golden.ROWS)]
    assert [item.row for item in store.invalid_rows()] == [golden.INVALID]
    assert np.flatnonzero(store.valid).tolist() == VALID
    for name, field in golden.fields_of(container).items():
        compare(store, name, field, VALID, [golden.formula(name, row) for row in VALID])
    table = store.artefact("prompts")
    assert unpack_texts(table) == golden.PROMPTS
    assert table["embedding"].shape == (2, 4)


@pytest.mark.parametrize("name", golden_more.NAMES)
def test_the_further_golden_stores_read(name: str) -> None:
    """Several inner chunks, mirrored tars, pax headers, versions, int32 indices, mirrored views, no labels."""
    container = golden_more.NAMES[name]
    store = FeatureStore.open(golden.FOLDER / name)
    assert store.sample_ids == golden_more.ids_of(container)
    assert (store.labels == -1).all()
    assert store.manifest.version == 3
    rows = [row for row in range(store.num_rows) if row not in golden_more.INVALID]
    assert np.flatnonzero(store.valid).tolist() == rows
    for field, record in golden_more.fields_of(container).items():
        compare(store, field, record, rows, [golden_more.formula(field, row) for row in rows])


def compare(
    store: FeatureStore, name: str, record: FieldRecord, rows: list[int], expected: list[Any]
) -> None:
    """Rows of a field are what was written."""
    found = read(store, name, rows)
    if isinstance(record.encoding, RaggedEncoding):
        parts = np.split(found.values, found.offsets[1:-1])
        flat = [view for row in expected for view in row]
        for part, view in zip(parts, flat, strict=True):
            np.testing.assert_array_equal(part, view, strict=True)
    elif isinstance(record.encoding, TopKEncoding):
        whole = np.stack(expected)
        order = np.argsort(-whole.astype(np.float32), axis=-1, kind="stable")
        order = order[..., : record.shape[-1]]
        np.testing.assert_array_equal(found.indices, order)
        np.testing.assert_array_equal(found.values, np.take_along_axis(whole, order, -1))
    elif isinstance(record.encoding, Int8Encoding) and record.encoding.relative_l2:
        assert found.dtype == np.float32
        assert np.abs(found - np.stack(expected).astype(np.float32)).mean() < 1
    else:
        np.testing.assert_array_equal(found, np.stack(expected), strict=record.dtype != "text")


@pytest.mark.parametrize("name", STORES)
def test_the_format_has_not_changed(name: str, tmp_path: Path) -> None:
    """The same rows give the same bytes as when version 1 was fixed; any other byte needs a new version.

    Metadata of Zarr is compared by its readers, not here: its spelling is up to the library.
    """
    more = golden_more.NAMES.get(name)
    made = (
        golden_more.write(tmp_path / "s", more)
        if more
        else golden.write(tmp_path / "s", "zarr" if name.endswith("zarr") else "webdataset")
    )
    ours, theirs = snapshot(made), snapshot(golden.FOLDER / name)
    assert ours.keys() == theirs.keys()
    for path in ours:
        if not path.endswith("zarr.json"):
            assert ours[path] == theirs[path], path


@pytest.mark.parametrize("name", STORES)
def test_golden_stores_are_sound(name: str) -> None:
    """What the writer of the golden stores wrote follows every rule that verify knows, and nothing else lies there."""
    report = verify(golden.FOLDER / name)
    assert report.sound, [str(damage) for damage in report.damages]
    assert report.complete
    assert not list((golden.FOLDER / name).glob(".*"))


# ------------------------------------------------------------------ docs/format.md is enough


@pytest.mark.parametrize("name", STORES)
def test_the_page_is_enough_to_write_a_reader(name: str) -> None:
    """The page, followed to the letter, gives the same bits as our reader, with the same hashes and fingerprint."""
    page, store = PageReader(golden.FOLDER / name), FeatureStore.open(golden.FOLDER / name)
    assert page.ids == store.sample_ids
    assert page.fingerprint == store.fingerprint
    np.testing.assert_array_equal(page.valid, store.valid)
    np.testing.assert_array_equal(page.hashes, store.content_sha256)
    if page.labels is None:
        assert not store.manifest.source.has_labels
    else:
        np.testing.assert_array_equal(page.labels, store.labels)
    assert page.reasons == {item.row: item.reason for item in store.invalid_rows()}
    rows = np.flatnonzero(store.valid).tolist()
    for field, record in store.manifest.fields.items():
        documented, ours = page.field(field), read(store, field, rows)
        if isinstance(record.encoding, RaggedEncoding):
            items = [view for row in rows for view in documented[row]]
            same_bits(np.concatenate(items), ours.values)
            np.testing.assert_array_equal(np.cumsum([0, *map(len, items)]), ours.offsets)
        elif isinstance(record.encoding, TopKEncoding):
            same_bits(documented[0][rows], ours.values)
            np.testing.assert_array_equal(documented[1][rows], ours.indices, strict=True)
        else:
            same_bits(documented[rows], ours)
        assert_invalid_rows(page, store, field, record)


def same_bits(documented: Any, ours: Any) -> None:
    """Equal numbers of equal types; what is bfloat16 in ours is float32 in the page's reader."""
    if ours.dtype == ml_dtypes.bfloat16:
        ours = ours.astype(np.float32)
    np.testing.assert_array_equal(documented, ours, strict=True)


def assert_invalid_rows(
    page: PageReader, store: FeatureStore, name: str, record: FieldRecord
) -> None:
    """Stored numbers of invalid rows are zeros; dequantised by channel, that is the channels' offset."""
    values = page.field(name)
    for row in np.flatnonzero(~store.valid).tolist():
        encoding = record.encoding
        if isinstance(encoding, RaggedEncoding):
            assert not any(len(view) for view in values[row])
        elif isinstance(encoding, Int8Encoding):
            offset = page.artefacts[encoding.channels]["offset"] if encoding.channels else 0
            assert (values[row] == offset).all()
        elif record.dtype != "text":
            both = values if isinstance(values, tuple) else (values,)
            assert not any(part[row].any() for part in both)


@pytest.mark.parametrize("name", STORES)
def test_the_page_says_what_every_checksum_covers(name: str, tmp_path: Path) -> None:
    """A flipped bit in any file but Zarr's own metadata is found by what the page tells to compare."""
    copy = tmp_path / name
    shutil.copytree(golden.FOLDER / name, copy)
    generator = np.random.default_rng(0)
    for path in sorted(copy.rglob("*")):
        if path.is_dir() or path.name == "zarr.json":
            continue
        data = path.read_bytes()
        place = int(generator.integers(len(data)))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((Damaged, ValueError, KeyError, AssertionError)):
            PageReader(copy)
        path.write_bytes(data)


@pytest.mark.slow
def test_the_reader_of_the_page_imports_nothing_of_ours() -> None:
    """Only the standard library and numpy; numcodecs where a codec is not in the standard library."""
    tree = ast.parse(Path(page_reader.__file__).read_text())
    found = {name for node in ast.walk(tree) for name in _imported(node)}
    allowed = {
        "hashlib",
        "io",
        "itertools",
        "json",
        "struct",
        "pathlib",
        "typing",
        "urllib",
        "numpy",
    }
    assert found == {*allowed, "numcodecs"}


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield (node.module or "").split(".")[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's file
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_examples_on_the_page_run(container: Container, tmp_path: Path) -> None:
    """The Python on the page reads a store: by column, in order, by position."""
    text = (ROOT / "docs" / "format.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    rows = vectors()
    path = rows.write(tmp_path / "s", container)
    for code in blocks:
        if (container == "zarr") != ("zarr.open_group" in code):
            continue
        values: dict[str, Any] = {}
        exec(compile(code.replace("STORE", str(path)), "docs/format.md", "exec"), values)
        if "features" in values:
            found = values["features"]
            np.testing.assert_array_equal(found, rows.values["cls"][: len(found)], strict=True)

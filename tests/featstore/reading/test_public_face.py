"""``FeatureStore`` as users see it: a table of fields, lazy arrays, data sets and loaders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featstore
from featstore import FeatureStore
from featstore.errors import ConfigError, MissingSamples, ViewMismatch
from featstore.format.fields import Ragged, TopK
from tests.featstore.backend_tests import NUM_ROWS, every_kind, read
from tests.featstore.stores import Array, make_columns, make_manifest, write_store

INVALID = 5


@pytest.fixture
def stored(tmp_path: Path) -> tuple[FeatureStore, dict[str, Array]]:
    """Two fields of numbers with two views; one row is invalid."""
    manifest = make_manifest(num_rows=20, shard_rows=8)
    columns = make_columns(manifest, invalid=[INVALID])
    path = write_store(tmp_path / "s", manifest, columns, reasons={INVALID: "made so"})
    return featstore.open(path), columns


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def kinds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A field of every kind."""
    rows = every_kind()
    path = rows.write(tmp_path_factory.mktemp("kinds") / "s", request.param)
    return FeatureStore.open(path, allow_incomplete=True)


def test_a_store_is_a_table_of_fields(stored: tuple[FeatureStore, dict[str, Array]]) -> None:
    """Its length is its rows; iteration and ``in`` are about fields, as in a data frame."""
    store, _ = stored
    assert len(store) == 20
    assert list(store) == ["cls", "grid2"]
    assert "cls" in store
    assert "fields/cls" not in store
    with pytest.raises(ConfigError, match="cls, grid2"):
        store["logits"]


def test_repr_names_rows_fields_teacher_and_size(
    stored: tuple[FeatureStore, dict[str, Array]],
) -> None:
    """On the console and in a notebook."""
    store, _ = stored
    size = sum(item.bytes for entry in store.entries() for item in entry.objects.values())
    assert store.nbytes == size
    for text in (repr(store), store._repr_html_()):
        for part in (str(store.path), "20", "cls", "grid2", "(2, 6)", "formula", "timm", "float16"):
            assert part in text


def test_what_comes_from_a_store_is_escaped(tmp_path: Path) -> None:
    """A teacher's name of another team is shown as text: no tags in a notebook, no escape sequences on a terminal."""
    manifest = make_manifest()
    teacher = manifest.teachers["teacher"].model_copy(
        update={"name": "<script>alert(1)</script>\x1b[2J\n"}
    )
    manifest = manifest.model_copy(update={"teachers": {"teacher": teacher}})
    store = FeatureStore.open(write_store(tmp_path / "s", manifest, make_columns(manifest)))
    assert "<script>" not in store._repr_html_()
    assert "alert(1)" in store._repr_html_()
    assert "\x1b" not in repr(store) + store._repr_html_()


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        np.int64(3),
        slice(None, 5),
        slice(-3, None),
        slice(None, None, 7),
        slice(4, 0, -1),
        [3, 3, 0],
        [],
        np.array([[1, 2], [3, 4]]),
        (slice(0, 4), 0),
        (slice(0, 4), slice(1, None)),
        ([4, 2], -1),
        (2, 1),
        (slice(0, 4), slice(None), slice(0, 2)),
        (Ellipsis, 0),
        (slice(0, 4), Ellipsis, 0),
        (7, Ellipsis),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["cls", "grid2"])
def test_indexing_is_numpys(
    stored: tuple[FeatureStore, dict[str, Array]], name: str, key: Any, tmp_path: Path
) -> None:
    """Integers, slices, lists and masks on rows; integers and slices behind them."""
    store, columns = stored
    whole = columns[f"fields/{name}"]
    if isinstance(key, tuple) and key[0] is Ellipsis:
        manifest = store.manifest
        columns = make_columns(manifest)
        whole = columns[f"fields/{name}"]
        store = FeatureStore.open(write_store(tmp_path / "valid", manifest, columns))
    field = store[name]
    assert (field.shape, field.dtype, len(field)) == (whole.shape, whole.dtype, 20)
    assert (field.ndim, field.size) == (whole.ndim, whole.size)
    np.testing.assert_array_equal(field[key], whole[key], strict=True)


def test_masks_and_whole_arrays(stored: tuple[FeatureStore, dict[str, Array]]) -> None:
    """A mask of all rows; rows without a feature are refused, also where all are asked for."""
    store, columns = stored
    field, whole = store["cls"], columns["fields/cls"]
    np.testing.assert_array_equal(field[store.valid], whole[store.valid])
    np.testing.assert_array_equal(field[store.valid, 1], whole[store.valid, 1])
    with pytest.raises(MissingSamples, match="made so"):
        field[:]
    with pytest.raises(MissingSamples, match="made so"):
        np.asarray(field)
    for wrong in (20, -21, [0, 99], (0, 2), (0, 0, 0, 0), (0, [1]), None):
        with pytest.raises((IndexError, ConfigError)):
            field[wrong]
    for key in ([0.5], np.ones(3, bool), "cls"):
        with pytest.raises(ConfigError):
            field[key]


def test_an_array_of_all_rows(tmp_path: Path) -> None:
    """``np.asarray``, another type, iteration."""
    manifest = make_manifest()
    columns = make_columns(manifest)
    field = FeatureStore.open(write_store(tmp_path / "s", manifest, columns))["cls"]
    np.testing.assert_array_equal(np.asarray(field), columns["fields/cls"], strict=True)
    assert np.asarray(field, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.stack(list(field)), columns["fields/cls"])
    with pytest.raises(ValueError, match="copy"):
        field.__array__(copy=False)


def test_fields_of_every_kind(kinds: FeatureStore) -> None:
    """What ``gather`` gives; top-k and ragged fields are refused with the way to read them."""
    store = kinds
    for name in store:
        found = read(store, name, [3, 0])
        if isinstance(found, TopK | Ragged):
            with pytest.raises(ConfigError, match="gather_"):
                store[name]
            continue
        field = store[name]
        np.testing.assert_array_equal(field[[3, 0]], found)
        assert field.dtype == found.dtype
        assert field.shape == (NUM_ROWS, *found.shape[1:])


def test_some_views_of_every_kind(kinds: FeatureStore) -> None:
    """Data sets, top-k and ragged fields read the views that are asked for."""
    torch = pytest.importorskip("torch")
    store = kinds
    whole = store.dataset(list(store)).__getitems__([3, 0, 9])
    picked = store.dataset(list(store), views=[1]).__getitems__([3, 0, 9])
    for name in store:
        if not store.manifest.fields[name].per_view:
            continue
        encoding = store.manifest.fields[name].encoding.kind
        if encoding == "ragged":
            offsets = whole[f"{name}.offsets"]
            parts = [
                whole[f"{name}.values"][offsets[2 * row + 1] : offsets[2 * row + 2]]
                for row in range(3)
            ]
            assert torch.equal(picked[f"{name}.values"], torch.cat(parts))
            continue
        for key in [f"{name}.values", f"{name}.indices"] if encoding == "topk" else [name]:
            if isinstance(whole[key], list):
                assert picked[key] == [row[1:2] for row in whole[key]]
            else:
                assert torch.equal(picked[key], whole[key][:, 1:2])
    with pytest.raises(ViewMismatch, match="0 to 1"):
        store.dataset(["float320"], views=[2])


def test_loaders(stored: tuple[FeatureStore, dict[str, Array]]) -> None:
    """Every valid row once, with labels, in the order of the seed; rows that are named, and no others."""
    store, columns = stored
    loader = store.loader(["cls"], batch_size=4, labels=True, views=[0], seed=2)
    seen: list[int] = []
    for batch in loader:
        rows = batch["row"].numpy()
        np.testing.assert_array_equal(batch["cls"].numpy(), columns["fields/cls"][rows][:, :1])
        np.testing.assert_array_equal(batch["label"].numpy(), columns["label"][rows])
        seen += rows.tolist()
    assert set(seen) == set(range(20)) - {INVALID}
    some = store.loader(["cls"], batch_size=2, rows=np.array([4, 9]), shuffle="none")
    assert [batch["row"].tolist() for batch in some] == [[4, 9]]

"""Duplicates and leaks: what is found equals what a naive comparison of all pairs finds, however it is cut."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featstore import FeatureStore
from featstore.cli.main import main
from featstore.errors import ConfigError, ViewMismatch
from featstore.format.manifest_records import Container
from featstore.format.views import ViewSet, make_views
from featstore.selection import near_duplicates as near
from featstore.selection import unit_vectors
from featstore.selection.groups import (
    TEST,
    exact_duplicates,
    join_groups,
    overlaps,
    select_parts,
)
from featstore.selection.near_duplicates import NearDuplicates, near_duplicates, own_crops
from featstore.selection.unit_vectors import default_field
from tests.conftest import ROOT
from tests.featstore.backend_tests import Rows, every_kind, int8_field, spec

VIEWS = 2
WIDTH = 8

Floats = npt.NDArray[np.float32]


def features(rows: int, *, seed: int = 0, copies: Sequence[tuple[int, int, float]] = ()) -> Floats:
    """(rows, V, D) around a common mean; each copy (a, b, noise) makes row b a noisy row a."""
    generator = np.random.default_rng(seed)
    values = 5 + generator.standard_normal((rows, VIEWS, WIDTH))
    for first, second, noise in copies:
        values[second] = values[first] + noise * generator.standard_normal((VIEWS, WIDTH))
    return values.astype(np.float32)


def make_store(
    path: Path,
    values: Floats,
    *,
    ids: Sequence[str] | None = None,
    invalid: Sequence[int] = (),
    shard_rows: int = 16,
    **changes: Any,
) -> FeatureStore:
    """A store of one field, cls."""
    rows = Rows(
        {"cls": spec("float32", (WIDTH,), teacher="teacher")},
        {"cls": values},
        invalid=dict.fromkeys(invalid, "bad"),
        shard_rows=shard_rows,
    )
    rows.ids = rows.ids if ids is None else list(ids)
    for first, second in changes.pop("same_files", ()):
        rows.hashes[second] = rows.hashes[first]
    return FeatureStore.open(rows.write(path, "zarr", **changes))


def cosines(store: FeatureStore, values: Floats) -> npt.NDArray[np.float64]:
    """(N, N) of the canonical view, the mean of valid rows taken off; -2 where there is nothing to compare."""
    wide = values[:, 0].astype(np.float64)
    wide -= wide[store.valid].mean(axis=0)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    table: npt.NDArray[np.float64] = wide @ wide.T
    np.fill_diagonal(table, -2)
    table[~store.valid] = table[:, ~store.valid] = -2
    return table


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, Floats]:
    """75 rows in five shards, some copies among them, two rows not valid."""
    copies = [(0, 70, 0.01), (3, 4, 0.05), (4, 60, 0.05), (10, 11, 0.3), (20, 21, 0.0)]
    values = features(75, copies=copies)
    values[[7, 30]] = 0
    path = tmp_path_factory.mktemp("several") / "store"
    return make_store(path, values, invalid=[7, 30]), values


@pytest.mark.parametrize("block_rows", [4096, 13])
@pytest.mark.parametrize("sides", ["all", "some with all", "some with some"])
def test_near_duplicates(
    several: tuple[FeatureStore, Floats],
    monkeypatch: pytest.MonkeyPatch,
    block_rows: int,
    sides: str,
) -> None:
    """Pairs, their order and everybody's nearest other are those of the whole table, in blocks of any size."""
    monkeypatch.setattr(unit_vectors, "BLOCK_ROWS", block_rows)
    store, values = several
    rows = range(75) if sides == "all" else range(0, 75, 2)
    others = range(75) if sides != "some with some" else range(0, 75, 3)
    seen: list[tuple[int, int]] = []
    found = near_duplicates(
        store,
        "cls",
        0.8,
        rows=None if sides == "all" else list(rows),
        others=None if sides != "some with some" else list(others),
        progress=lambda done, total: seen.append((done, total)),
    )
    table = cosines(store, values)
    expected = {
        (min(a, b), max(a, b)): table[a, b] for a in rows for b in others if table[a, b] >= 0.8
    }
    assert len(expected) > 3
    assert found.found == len(expected)
    assert dict(zip(map(tuple, found.rows.tolist()), found.cosine.tolist(), strict=True)) == (
        pytest.approx(expected, abs=1e-5)
    )
    assert (np.diff(found.cosine) <= 0).all()
    valid = [row for row in rows if store.valid[row]]
    assert found.compared.tolist() == valid
    part = table[np.ix_(valid, list(others))]
    np.testing.assert_allclose(found.nearest, part.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(table[valid, found.nearest_row], part.max(axis=1), atol=1e-5)
    assert seen[-1][0] == seen[-1][1] == len(valid) * int(store.valid[list(others)].sum())


def test_too_many_pairs(
    several: tuple[FeatureStore, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are counted, and the most alike are kept."""
    store, _ = several
    monkeypatch.setattr(unit_vectors, "BLOCK_ROWS", 10)
    every = near_duplicates(store, "cls", -0.5)
    monkeypatch.setattr(near, "MOST_PAIRS", 20)
    some = near_duplicates(store, "cls", -0.5)
    assert every.found == some.found == len(every.rows) > 1000
    np.testing.assert_array_equal(some.rows, every.rows[:20])
    np.testing.assert_array_equal(some.nearest, every.nearest)


def test_rows_that_are_all_the_same(tmp_path: Path) -> None:
    """With the mean taken off nothing would be left; they are duplicates all the same."""
    store = make_store(tmp_path / "s", np.full((5, VIEWS, WIDTH), 0.3, np.float32))
    assert near_duplicates(store, "cls", 1.0).found == 10


@pytest.mark.parametrize(
    "kind", ["float16", "bfloat16", "int8", "grid", "not per view", "webdataset"]
)
def test_every_kind_of_feature(tmp_path: Path, kind: str) -> None:
    """Of any floating point type, quantised, of a grid, of either container: the planted pair and no other."""
    values = features(40, copies=[(2, 33, 0.01)])
    record, channels = spec("float32", (WIDTH,)), None
    if kind in ("float16", "bfloat16"):
        record = spec(kind, (WIDTH,))
        values = values.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else np.float16)
    if kind == "int8":
        record, channels = int8_field(values, "channel_row", "cls-scales")
    if kind == "grid":
        record, values = spec("float32", (2, 4)), values.reshape(40, VIEWS, 2, 4)
    if kind == "not per view":
        record, values = spec("float32", (WIDTH,), per_view=False), values[:, 0]
    scales = {} if channels is None else {"cls-scales": channels}
    rows = Rows({"cls": record}, {"cls": values}, channels=scales, shard_rows=16)
    container: Container = "webdataset" if kind == "webdataset" else "zarr"
    store = FeatureStore.open(rows.write(tmp_path / "s", container))
    assert near_duplicates(store, "cls", 0.97).rows.tolist() == [[2, 33]]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of all pairs would take 64 MB, one of two blocks takes 1 MB."""
    monkeypatch.setattr(unit_vectors, "BLOCK_ROWS", 512)
    store = make_store(tmp_path / "s", features(4000, copies=[(5, 3999, 0.0)]), shard_rows=4000)
    store.gather("cls", range(4000))  # mapped and checked, which is the reader's memory
    tracemalloc.start()
    found = near_duplicates(store, "cls", 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [5, 3999] in found.rows.tolist()
    assert peak < 8e6


def test_exact_duplicates(tmp_path: Path) -> None:
    """Rows of one hash, also where it ends in zeros, and only those with usable features."""
    same = [(1, 8), (1, 15), (2, 3), (4, 19)]
    store = make_store(tmp_path / "s", features(20), same_files=same, invalid=[19])
    assert [group.tolist() for group in exact_duplicates(store)] == [[1, 8, 15], [2, 3]]


def test_groups() -> None:
    """What chains connect is one group; the largest comes first."""
    near = np.array([[5, 9], [0, 4], [9, 2]])
    groups = join_groups([np.array([2, 7, 8]), np.array([3, 6])], near)
    assert [group.tolist() for group in groups] == [[2, 5, 7, 8, 9], [0, 4], [3, 6]]
    assert join_groups([], np.empty((0, 2), np.int64)) == []
    generator = np.random.default_rng(0)
    long = np.stack(
        [generator.permutation(5000)[:4000], generator.permutation(5000)[:4000]], axis=1
    )
    _, member = connected_components(
        coo_array((np.ones(4000), (long[:, 0], long[:, 1])), (5000, 5000)), directed=False
    )
    for group in join_groups([], long):
        assert np.array_equal(group, np.flatnonzero(member == member[group[0]]))


def test_overlaps_of_parts() -> None:
    """Each image counts once: as the same, else as an equal file, else as a near duplicate. Against a naive count."""
    generator = np.random.default_rng(3)
    parts = {
        name: np.sort(generator.choice(60, 25, replace=False))
        for name in ("labelled", TEST, "unlabelled")
    }
    exact = [np.array([0, 5, 9]), np.array([11, 30]), np.array([40, 41, 42, 43])]
    near = np.sort(generator.choice(60, (40, 2)), axis=1)
    found = overlaps(parts, exact, near)
    names = [(item.part, item.other) for item in found]
    assert names == [(TEST, "labelled"), (TEST, "unlabelled"), ("labelled", "unlabelled")]
    for item in found:
        here, there = set(parts[item.part].tolist()), set(parts[item.other].tolist())
        same = here & there
        copied = {
            a
            for group in exact
            for a in here & set(group.tolist())
            if there & set(group.tolist()) - {a}
        }
        links = [*map(tuple, near.tolist()), *map(tuple, near[:, ::-1].tolist())]
        close = {a for a, b in links if a in here and b in there}
        assert set(item.same.tolist()) == same
        assert set(item.exact.tolist()) == copied - same
        assert set(item.near.tolist()) == close - copied - same
        assert item.size == 25
        assert item.leak == (item.part == TEST)
    alone = overlaps(
        {TEST: np.array([1]), "labelled": np.array([2])}, [], np.empty((0, 2), np.int64)
    )
    assert not alone[0].leak


def test_what_is_refused(several: tuple[FeatureStore, Floats], tmp_path: Path) -> None:
    """Fields that are no vectors, stores without a canonical view, rows outside, parts that match nothing."""
    store, values = several
    kinds = FeatureStore.open(every_kind().write(tmp_path / "kinds", "zarr"))
    assert default_field(kinds) == "float161"
    for name in ("logits", "points", "caption", "int81", "none"):
        with pytest.raises(ConfigError, match=f"'{name}'"):
            near_duplicates(kinds, name)
    for options in ({"threshold": 1.5}, {"threshold": float("nan")}, {"rows": [75]}, {"rows": [7]}):
        with pytest.raises(ConfigError):
            near_duplicates(store, "cls", **options)
    with pytest.raises(ConfigError):
        select_parts(store, {"val": ["val/*"]})
    views = ViewSet(views=make_views(canonical=False, seeded=VIEWS, mirrored=False))
    crops = make_store(tmp_path / "crops", values, views=views, same_files=[(1, 2)])
    with pytest.raises(ViewMismatch, match="canonical"):
        near_duplicates(crops, "cls")
    assert main(["inspect", str(crops.path), "--duplicates"]) == 0
    with pytest.raises(ViewMismatch):
        own_crops(crops, "cls")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """40 rows: train/0 to train/24, test/25 to test/34, val/35 to val/39; two near copies and an equal file across."""
    ids = [
        f"{'train' if row < 25 else 'test' if row < 35 else 'val'}/{row}.png" for row in range(40)
    ]
    copies = [(1, 2, 0.01), (3, 30, 0.01), (31, 38, 0.01)]
    path = tmp_path_factory.mktemp("split") / "store"
    return make_store(path, features(40, copies=copies), ids=ids, same_files=[(4, 29)])


def inspect(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Status and what ``inspect --duplicates --json`` says of duplicates."""
    status = main(["inspect", *words, "--duplicates", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["duplicates"]
    return status, found


def test_the_command(split: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A leak between test and another part is status 1, and named; the default parts are those of phase two."""
    assert main(["inspect", str(split.path), "--duplicates"]) == 1
    text = capsys.readouterr().out
    for part in (
        "equal files  2 images in 1 groups",
        "train/4.png, test/29.png",
        "3 pairs with cosine 0.97 or more; 6 of 40 images",
        "train/3.png  test/30.png",
        "parts        labelled 25, test 10",
        "LEAK         of 10 images of test, in labelled too: 0 the same images, 1 equal files, 1 near duplicates",
        "own crops",
    ):
        assert part in text, part
    status, found = inspect(capsys, str(split.path))
    assert (status, found["leak"], found["parts"]) == (1, True, {"labelled": 25, "test": 10})
    assert found["overlaps"][0]["exact"] == ["test/29.png"]
    assert found["overlaps"][0]["near"] == ["test/30.png"]
    assert found["near"]["pairs"][0].keys() == {"first", "second", "cosine"}
    assert ["train/4.png", "test/29.png"] in found["groups"]
    step = {item["cosine"]: item["images"] for item in found["near"]["ladder"]}
    assert step[0.97] == found["near"]["images"] == 6


def test_parts_of_the_command(
    split: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts by flags or from a recipe; without a shared image status 0; what other parts share is no leak."""
    path = str(split.path)
    assert inspect(capsys, path, "--parts", "labelled=train/?.png", "test=val/*")[0] == 0
    status, found = inspect(
        capsys, path, "--parts", "labelled=test/*", "unlabelled=val/*", "unlabelled=train/1*"
    )
    assert (status, found["leak"], found["parts"]["unlabelled"]) == (0, False, 5 + 11)
    assert found["overlaps"][0]["near"] == ["test/31.png"]
    assert inspect(capsys, path, "--parts", "labelled=t*", "test=test/2*")[1]["overlaps"][0][
        "same"
    ] == [f"test/{row}.png" for row in range(25, 30)]
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data:\n  unlabelled: ['val/*']\nmethods: [kd]\n")
    status, found = inspect(capsys, path, "--recipe", str(recipe))
    assert (status, found["parts"]) == (1, {"labelled": 25, "unlabelled": 5, "test": 10})
    assert [item["near"] for item in found["overlaps"]] == [["test/30.png"], ["test/31.png"], []]
    status, found = inspect(capsys, path, "--sample", "4")
    assert (status, found["near"]["compared"]) == (1, 4)


def test_recipes_of_the_repository_have_parts() -> None:
    """Their data sections are understood as distill.py understands them."""
    from distill.config import DataConfig
    from featstore.cli.duplicates import _recipe_patterns

    paths = sorted((ROOT / "pipelines/recipes").rglob("distill.yaml"))
    assert len(paths) > 3
    for path in paths:
        assert _recipe_patterns(path), (
            path
        )  # a share of the images is the test part where none is named
    default = DataConfig()
    empty = ROOT / "pipelines/recipes/digits/distill.yaml"
    assert _recipe_patterns(empty)["labelled"] == default.labelled


def test_wrong_words(
    split: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is one line on stderr, status 2."""
    path = str(split.path)
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "broken.yaml").write_text("data: [")
    (tmp_path / "text.yaml").write_text("data: {test: test/*}")
    for words, message in (
        (["--threshold", "0.9"], "--duplicates"),
        (["--duplicates", "--threshold", "2"], "threshold 2"),
        (["--duplicates", "--field", "grid"], "no field 'grid'"),
        (["--duplicates", "--parts", "train/*"], "expected NAME=PATTERN"),
        (["--duplicates", "--parts", "test=none/*"], "part test: no image matches"),
        (["--duplicates", "--recipe", str(tmp_path / "no.yaml")], "not readable as YAML"),
        (["--duplicates", "--recipe", str(tmp_path / "broken.yaml")], "not readable as YAML"),
        (["--duplicates", "--recipe", str(tmp_path / "list.yaml")], "not a recipe"),
        (["--duplicates", "--recipe", str(tmp_path / "text.yaml")], "expected a list of patterns"),
    ):
        assert main(["inspect", path, *words]) == 2, words
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err


def test_pairs_are_plain_arrays(several: tuple[FeatureStore, Floats]) -> None:
    """The types that callers rely on."""
    found: NearDuplicates = near_duplicates(several[0], "cls", 0.99)
    assert (found.rows.dtype, found.cosine.dtype) == (np.int64, np.float32)
    assert found.rows.shape == (len(found.cosine), 2)
    none = near_duplicates(several[0], "cls", 0.99, rows=[0], others=[1])
    assert none.rows.shape == (0, 2)
    assert none.nearest_row.tolist() == [1]

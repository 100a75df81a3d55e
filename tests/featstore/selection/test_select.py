"""Images chosen by features: each step equals a naive computation over all pairs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import featstore
from featstore import FeatureStore
from featstore.card.selection_page import write_page
from featstore.cli.main import main
from featstore.errors import ConfigError, ManifestMismatch, MissingSamples
from featstore.format.ids import read_ids, write_ids
from featstore.importing.create import from_arrays
from featstore.selection import unit_vectors
from featstore.selection.choose import select
from featstore.selection.near_duplicates import near_duplicates

WIDTH = 6
Floats = npt.NDArray[np.float32]


def blobs(rows: int, *, centres: int = 4, seed: int = 0, spread: float = 0.2) -> Floats:
    """Rows around some centres, which they take in turn."""
    generator = np.random.default_rng(seed)
    middle = np.random.default_rng(5).standard_normal((centres, WIDTH)) * 3
    noise = generator.standard_normal((rows, WIDTH)) * spread
    values: Floats = (middle[np.arange(rows) % centres] + noise).astype(np.float32)
    return values


def make(path: Path, values: Floats, **options: Any) -> FeatureStore:
    """A store of some vectors."""
    ids = [f"{'ab'[row % 2]}/{path.name}{row:03d}.jpg" for row in range(len(values))]
    given = {"teacher": "t", "shard_rows": 16, **options}
    from_arrays(path, {"cls": values}, ids, **given)
    return FeatureStore.open(path)


def units(values: Floats, centre: Floats | None = None) -> npt.NDArray[np.float64]:
    """Vectors of length 1, the mean taken off."""
    wide = values - (values.mean(axis=0) if centre is None else centre)
    found: npt.NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return found


@pytest.fixture(params=[7, 4096])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large blocks give the same."""
    monkeypatch.setattr(unit_vectors, "BLOCK_ROWS", request.param)


@pytest.mark.usefixtures("blocks")
def test_like_gives_every_target_its_nearest(tmp_path: Path) -> None:
    """By rank, then by cosine; targets themselves are not chosen; the scores are the cosines."""
    values = blobs(60)
    labels = np.full(60, -1)
    labels[[0, 5, 10]] = 0
    store = make(tmp_path / "s", values, labels=labels)
    found = select(store, like="labelled", count=12)
    cosine = units(values) @ units(values)[[0, 5, 10]].T
    candidates = np.setdiff1d(np.arange(60), [0, 5, 10])
    expected: dict[int, None] = {}
    order = [candidates[np.argsort(-cosine[candidates, i])] for i in range(3)]
    for rank in range(57):
        for target in sorted(range(3), key=lambda i: -cosine[order[i][rank], i]):
            if len(expected) < 12:
                expected[int(order[target][rank])] = None
    assert found.rows.tolist() == sorted(expected)
    assert found.ids == [store.sample_ids[row] for row in found.rows]
    assert any("3 rows" in note for note in found.notes)
    best = cosine.max(axis=1)
    step = found.steps[0]
    np.testing.assert_allclose(step.taken_scores, best[step.taken], atol=1e-5)
    np.testing.assert_allclose(step.left_scores, best[step.left], atol=1e-5)
    assert (np.diff(step.taken_scores) <= 0).all()
    # More rows than all targets' nearest together: filled up by cosine, up to all of them.
    assert len(select(store, like=[0], count=59).rows) == 59
    with pytest.raises(ConfigError, match="60"):
        select(store, like=[0], count=60)


@pytest.mark.usefixtures("blocks")
def test_like_another_store_and_patterns(tmp_path: Path) -> None:
    """Rows of another store of the same teacher, or of patterns over the ids."""
    values, others = blobs(40), blobs(3, centres=1, seed=9)
    store, other = make(tmp_path / "s", values), make(tmp_path / "o", others)
    found = select(store, like=other.path, count=5)
    cosine = units(values) @ units(others, values.mean(axis=0)).T
    nearest = {int(row) for row in np.argsort(-cosine[:, 0])[:1]}
    assert nearest <= set(found.rows.tolist())
    assert set(found.rows % 4) == {0}  # of the centre that the others are of
    by_pattern = select(store, like="b/*", count=4)
    assert all(name.startswith("a/") for name in by_pattern.ids)
    with pytest.raises(ManifestMismatch, match="t2"):
        select(store, like=make(tmp_path / "t2", others, teacher="t2").path, count=2)
    with pytest.raises(ConfigError, match="nothing/"):
        select(store, like="nothing/*", count=2)


@pytest.mark.usefixtures("blocks")
def test_novel_leaves_out_what_is_there_already(tmp_path: Path) -> None:
    """Rows whose nearest row there is below the threshold; the most unlike ones with a count."""
    values = blobs(40)
    store = make(tmp_path / "s", values)
    seen = make(tmp_path / "seen", values[[0, 4, 8]] * 1.0001)
    cosine = (units(values) @ units(values[[0, 4, 8]], values.mean(axis=0)).T).max(axis=1)
    found = select(store, novel=seen.path, threshold=0.9)
    assert found.rows.tolist() == np.flatnonzero(cosine < 0.9).tolist()
    few = select(store, novel=seen.path, threshold=0.9, count=6)
    assert few.rows.tolist() == sorted(np.argsort(cosine, kind="stable")[:6].tolist())
    with pytest.raises(ConfigError, match="40"):
        select(store, novel=seen.path, threshold=0.9, count=40)


def test_without_duplicates_keeps_the_first(tmp_path: Path) -> None:
    """Of near duplicates and of equal files."""
    values = np.random.default_rng(0).standard_normal((30, WIDTH)).astype(np.float32)
    values[[7, 20]] = values[3]
    hashes = np.arange(30 * 32, dtype=np.uint32).reshape(30, 32).astype(np.uint8)
    hashes[:, 0] = np.arange(30)
    hashes[11] = hashes[2]
    store = make(tmp_path / "s", values, content_sha256=hashes)
    found = select(store, without_duplicates=True, threshold=0.999)
    assert sorted(set(range(30)) - set(found.rows.tolist())) == [7, 11, 20]
    assert found.steps[0].left.tolist()[-1] in (7, 20)


def test_many_rows_are_compared_within_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same duplicates as among all pairs, each pair once, the nearest row of each; and the reader is told."""
    values = blobs(300, spread=0.5)
    copies = np.arange(0, 300, 7)
    values[copies] = values[copies - 100] * 1.001
    store = make(tmp_path / "s", values)
    exact = select(store, without_duplicates=True, threshold=0.9999)
    monkeypatch.setattr("featstore.selection.choose.EXACT_ROWS", 100)
    monkeypatch.setattr("featstore.selection.choose.CELL_ROWS", 30)
    found = select(store, without_duplicates=True, threshold=0.9999)
    assert found.ids == exact.ids
    assert len(found.rows) < 300
    assert exact.notes == []
    assert "10 clusters" in found.notes[0]
    everything = near_duplicates(store, "cls", 0.9999)
    cells = near_duplicates(store, "cls", 0.9999, cells=np.zeros((300, 1), np.int64))
    np.testing.assert_array_equal(cells.rows, everything.rows)
    np.testing.assert_array_equal(cells.nearest_row, everything.nearest_row)
    assert cells.found == everything.found


def test_diverse_takes_of_every_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows as asked for; small clusters are taken whole; the same seed gives the same rows."""
    whole = blobs(240)
    small = [row for row in range(12) if row % 4 >= 2]  # of two of four centres, three rows each
    values = np.concatenate([whole[np.arange(240) % 4 < 2][:90], whole[small]])
    store = make(tmp_path / "s", values)
    monkeypatch.setattr("featstore.selection.choose.MOST_CLUSTERS", 4)
    found = select(store, diverse=12)
    assert len(found.rows) == 12
    assert set(range(90, 96)) <= set(found.rows.tolist())
    assert select(store, diverse=12).ids == found.ids
    for count in (1, 2, 3, 50, 95, 96):
        assert len(select(store, diverse=count, seed=count).rows) == count
    with pytest.raises(ConfigError, match="97"):
        select(store, diverse=97)


def test_steps_follow_each_other(tmp_path: Path) -> None:
    """Invalid rows are never chosen; every step narrows the rows of the one before."""
    values = blobs(60)
    values[9] = np.nan
    store = make(tmp_path / "s", values, non_finite="invalid", labels=[0] * 4 + [-1] * 56)
    found = select(
        store,
        without_duplicates=True,
        like="labelled",
        count=20,
        diverse=8,
        where=["a/*", "b/*"],
        threshold=0.9999,
    )
    assert [len(step.taken) for step in found.steps][1:] == [20, 8]
    assert 9 not in found.rows
    for before, after in zip(found.steps, found.steps[1:], strict=False):
        assert set(after.taken) <= set(before.taken)
    for given, match in (
        ({}, "nothing"),
        ({"like": "labelled"}, "count"),
        ({"diverse": 3, "count": 3}, "count"),
        ({"diverse": 3, "where": ["c/*"]}, "c/"),
    ):
        with pytest.raises(ConfigError, match=match):
            select(store, **given)


def test_the_command_and_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ids go into a file that subset reads; the page holds ids from both sides and loads nothing."""
    store = make(tmp_path / "s", blobs(60), labels=np.arange(60) % 3, class_names="xyz")
    out, page = tmp_path / "ids.txt", tmp_path / "page.html"
    argv = ["select", str(store.path), str(out), "--diverse", "12", "--page", str(page)]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 12
    assert said["steps"] == [{"step": "diverse", "taken": 12, "left": 48}]
    assert main(argv) == 0  # again, to the same file
    assert "12" in capsys.readouterr().out
    ids = read_ids(out)
    text = page.read_text()
    assert sum(name in text for name in ids) == 12
    assert sum(name in text for name in set(store.sample_ids) - set(ids)) > 10
    assert not re.search(r"(src|href)=.https?:", text)
    assert main(["subset", str(store.path), str(tmp_path / "part"), "--ids", str(out)]) == 0
    part = featstore.open(tmp_path / "part")
    assert part.sample_ids == ids
    np.testing.assert_array_equal(
        part.gather("cls", range(12)), store.gather("cls", store.rows_of(ids))
    )
    write_ids(tmp_path / "odd.txt", ["nowhere"])
    assert (
        main(["subset", str(store.path), str(tmp_path / "x"), "--ids", str(tmp_path / "odd.txt")])
        == 2
    )
    assert "nowhere" in capsys.readouterr().err
    assert main([*argv[:3], "--diverse", "13"]) == 2  # another list under that name
    assert "ids.txt" in capsys.readouterr().err


def test_the_page_shows_images(tmp_path: Path) -> None:
    """With the folder of the images, also of a store without content hashes; files that are not there are no error."""
    store = make(tmp_path / "s", blobs(30))
    photos = tmp_path / "photos"
    for name in store.sample_ids[:20]:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(photos / name)
    found = select(store, diverse=5)
    write_page(tmp_path / "p.html", store, found, asked="five", images=photos)
    assert (tmp_path / "p.html").read_text().count("data:image/") > 10
    with pytest.raises(ConfigError, match="nothing"):
        write_page(tmp_path / "p.html", store, found, asked="five", images=tmp_path / "nothing")


def test_lists_of_ids(tmp_path: Path) -> None:
    """What is written is read; what cannot be a line is refused."""
    ids = ["a b.jpg", "ü/ü.png", "#x", " y"]
    write_ids(tmp_path / "ids.txt", ids)
    assert read_ids(tmp_path / "ids.txt") == ids
    for wrong in ("a\nb", "a\u2028b"):
        with pytest.raises(ConfigError):
            write_ids(tmp_path / "other.txt", [wrong])
    with pytest.raises(ConfigError, match=r"nothing\.txt"):
        read_ids(tmp_path / "nothing.txt")
    with pytest.raises(MissingSamples, match="zzz"):
        make(tmp_path / "s", blobs(4)).rows_of(["zzz"])
